"""Content of the cluster of `make cluster`: the chart, a team's namespace, and the demo's model and data in a bucket.

It runs in the cluster's network: `python -m cluster exec python -m cluster.playground`.
"""

import base64
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import boto3
import yaml

from cluster import binaries, images, object_store
from cluster.choice import AnyCluster, cluster_of
from cluster.folders import REPOSITORY, RunFolder
from cluster.node import ACCELERATOR
from release.chart import CHART, package_chart

RELEASE = "edgetune"
RELEASE_NAMESPACE = "edgetune-system"
CLUSTER_NAME = f"{RELEASE}-{RELEASE_NAMESPACE}"
"""Prefix of the names of the release's ClusterRoles."""

CREDENTIALS_SECRET = "edgetune-s3"
TEAM = "team-a"
_EXAMPLE = REPOSITORY / "examples" / "sensor-faults"
_HELM_LIMIT = "120s"


def profile(endpoint: str) -> dict[str, Any]:
    """A profile for this cluster: the S3 server at a URL, and resources that fit its node.

    Training requests an accelerator in place of a GPU, which the node advertises but does not have: it runs on the
    CPU.
    """
    small: dict[str, Any] = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "6Gi"}}
    training = {kind: {**amounts, ACCELERATOR: 1} for kind, amounts in small.items()}
    stages = ("prepare", "merge", "quantize", "evaluate", "publish")
    return {
        "store": {
            "uri": f"s3://{object_store.BUCKET}/artifacts",
            "endpoint": endpoint,
            "region": "us-east-1",
            "pathStyle": True,
            "credentialsSecret": CREDENTIALS_SECRET,
        },
        "image": {"pullPolicy": "Never"},
        "resources": {**dict.fromkeys(stages, small), "train": training},
        "workVolumeSize": "8Gi",
    }


def chart_values(cluster: AnyCluster, profiles: Mapping[str, Any]) -> dict[str, Any]:
    """Values for the packaged chart, which names the cluster's images by digest: profiles by name."""
    values: dict[str, Any] = {
        "profiles": dict(profiles),
        "image": {"pullPolicy": "Never"},
        "operator": {"logFormat": "text"},
    }
    if not cluster.has_images_by_digest:
        values["image"] |= _by_tag(images.OPERATOR)
        values["jobsImage"] = _by_tag(images.JOBS)
        # The tag stays the same when the image changes.
        values["podAnnotations"] = {"playground/image": cluster.image_digest(images.OPERATOR)}
    return values


def chart_package(cluster: AnyCluster) -> Path:
    """The chart as `make release` packages it, with the cluster's images, or that of the given release."""
    release = images.given_release()
    if release:
        return images.release_file(release, "edgetune-*.tgz")
    digests = {image: cluster.image_digest(name) for image, name in images.TAGS.items()}
    return package_chart(REPOSITORY / CHART, digests, cluster.run.path, binaries.binary("helm"))


def team_manifests(namespace: str) -> list[dict[str, Any]]:
    """A namespace under Pod Security `restricted`, with the Secret for the bucket."""
    keys = {
        "AWS_ACCESS_KEY_ID": object_store.ACCESS_KEY_ID,
        "AWS_SECRET_ACCESS_KEY": object_store.SECRET_ACCESS_KEY,
    }
    return [
        _restricted_namespace(namespace),
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": CREDENTIALS_SECRET, "namespace": namespace},
            "data": {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()},
        },
    ]


def install_chart(cluster: AnyCluster, values: Mapping[str, Any]) -> None:
    """Install the packaged chart, or bring it up to date, and wait until the operator is ready."""
    kubeconfig = cluster.run.kubeconfig
    _apply(kubeconfig, [_restricted_namespace(RELEASE_NAMESPACE)])
    arguments = ("--namespace", RELEASE_NAMESPACE, "--values", "-", "--wait", "--timeout", _HELM_LIMIT)
    _run(
        "helm",
        kubeconfig,
        "upgrade",
        "--install",
        RELEASE,
        str(chart_package(cluster)),
        *arguments,
        given=json.dumps(values),
    )


def main() -> int:
    """Fill the cluster whose network this process is in, and say what to try."""
    cluster = cluster_of(os.environ)
    if cluster is None:
        print("playground: run it in a cluster's network, by `make cluster`", file=sys.stderr)
        return 1
    run, endpoint = cluster.run, cluster.object_store.endpoint
    print("installing the chart", file=sys.stderr)
    install_chart(cluster, chart_values(cluster, {"default": profile(endpoint)}))
    _apply(run.kubeconfig, team_manifests(TEAM))
    print("putting the demo's model and data into the bucket", file=sys.stderr)
    _upload(endpoint, [*sorted((_EXAMPLE / "base").iterdir()), _EXAMPLE / "train.jsonl", _EXAMPLE / "eval.jsonl"])
    manifest = run.path / "sensor-faults.yaml"
    manifest.write_text(yaml.safe_dump(demo_object(), sort_keys=False), encoding="utf-8")
    for name in ("kubectl-edgetune", "kubectl_complete-edgetune"):
        plugin = run.programs / name
        plugin.unlink(missing_ok=True)
        plugin.symlink_to(Path(sys.executable).with_name(name))
    print(_what_to_try(run, manifest))
    return 0


def demo_object() -> dict[str, Any]:
    """The example's object, with inputs in the bucket in place of files."""
    document: dict[str, Any] = yaml.safe_load((_EXAMPLE / "lora-fine-tune.yaml").read_text(encoding="utf-8"))
    document["metadata"]["namespace"] = TEAM
    spec = document["spec"]
    for source in (spec["baseModel"], spec["dataset"]["train"], spec["dataset"]["eval"]):
        source["uri"] = f"s3://{object_store.BUCKET}/{_EXAMPLE.name}/{source['uri'].removeprefix('./')}"
    return document


def _what_to_try(run: RunFolder, manifest: Path) -> str:
    return f"""
The cluster is running, and the chart is installed. Try:

  export PATH={shlex.quote(str(run.programs))}:"$PATH"
  kubectl apply -f {shlex.quote(str(manifest))}
  kubectl -n {TEAM} get lft -w
  kubectl -n {TEAM} get jobs,pods
  kubectl -n {TEAM} describe lft sensor-faults
  kubectl edgetune describe sensor-faults -n {TEAM}
  kubectl -n {RELEASE_NAMESPACE} logs deployment/{RELEASE} -f

The output of the stages is in {run.buckets / object_store.BUCKET}.
`make cluster-down` stops the cluster."""


def _by_tag(name: str) -> dict[str, str]:
    repository, tag = name.rsplit(":", 1)
    return {"repository": repository, "tag": tag, "digest": ""}


def _restricted_namespace(name: str) -> dict[str, Any]:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _upload(endpoint: str, paths: Iterable[Path]) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=object_store.ACCESS_KEY_ID,
        aws_secret_access_key=object_store.SECRET_ACCESS_KEY,
    )
    for path in paths:
        client.upload_file(str(path), object_store.BUCKET, f"{_EXAMPLE.name}/{path.relative_to(_EXAMPLE).as_posix()}")


def _apply(kubeconfig: Path, manifests: list[dict[str, Any]]) -> None:
    _run("kubectl", kubeconfig, "apply", "--filename", "-", given=yaml.safe_dump_all(manifests))


def _run(program: str, kubeconfig: Path, *arguments: str, given: str) -> None:
    command = [str(binaries.binary(program)), "--kubeconfig", str(kubeconfig), *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{program} {arguments[0]}: {(done.stderr or done.stdout).strip()}")


if __name__ == "__main__":
    sys.exit(main())
