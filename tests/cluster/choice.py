"""Choice of the cluster: this machine as a node, or kind."""

from collections.abc import Mapping
from pathlib import Path

from cluster.folders import RunFolder, cache_folder
from cluster.kind import KindCluster
from cluster.lifecycle import Cluster

AnyCluster = Cluster | KindCluster
TYPES: Mapping[str, type[Cluster] | type[KindCluster]] = {"node": Cluster, "kind": KindCluster}
_FOLDER_VARIABLE = "EDGETUNE_CLUSTER"
_TYPE_VARIABLE = "EDGETUNE_CLUSTER_TYPE"


def default_run_folder(cluster_type: str) -> RunFolder:
    """Folder of the default cluster of a type on this machine."""
    return RunFolder(cache_folder() / ("cluster" if cluster_type == "node" else cluster_type))


def variables_of(cluster: AnyCluster) -> dict[str, str]:
    """Environment variables for commands that run in a cluster's network."""
    cluster_type = next(name for name, its_class in TYPES.items() if isinstance(cluster, its_class))
    return {
        "KUBECONFIG": str(cluster.run.kubeconfig),
        _FOLDER_VARIABLE: str(cluster.run.path),
        _TYPE_VARIABLE: cluster_type,
    }


def cluster_of(variables: Mapping[str, str]) -> AnyCluster | None:
    """The cluster in whose network this process runs, from its environment; None if there is none."""
    if _FOLDER_VARIABLE not in variables:
        return None
    return TYPES[variables[_TYPE_VARIABLE]](RunFolder(Path(variables[_FOLDER_VARIABLE])))
