"""GPUs of profiles: Helm refuses the numbers and kinds with which the operator would not start, and no others."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from edgetune_contract.stages import Stage
from edgetune_operator.api.profiles.profile import InvalidProfiles, load_profiles
from edgetune_operator.api.profiles.resources import GPU_PATTERN
from support.apiserver import BINARIES_VARIABLE
from support.chart import CHART, CLUSTER_NAME, PROFILE, Refused, find_helm, mounted_profiles, one, render, rules

pytestmark = pytest.mark.skipif(
    find_helm() is None, reason=f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH: the chart is not tested"
)

SLICE = "nvidia.com/mig-1g.5gb"
NO_WHOLE_GPUS = "maxGpus: needs whole GPUs in the requests or limits of resources.train; remove maxGpus"

NO_SLICES = ": the slices of a GPU cannot train together; remove maxNodes and resources.train.nodes"


def claims(number: int) -> list[dict[str, str]]:
    return [{"name": f"gpu-{each}", "resourceClaimTemplateName": "one-gpu"} for each in range(number)]


def training(**resources: Any) -> dict[str, Any]:
    return {"resources": {"train": resources}}


def kinds(stage: str, *names: str) -> str:
    listed = ", ".join(names)
    return f"resources.{stage}: GPUs of several kinds ({listed}), but a stage uses GPUs of one kind; remove the others"


@pytest.mark.parametrize(
    ("profile", "complaint"),
    [
        (
            {"maxGpus": 1, **training(limits={"nvidia.com/gpu": 4})},
            "maxGpus: 1 is less than the 4 GPUs of resources.train; raise or remove maxGpus",
        ),
        (
            {"maxGpus": 7, **training(requests={"amd.com/gpu": "08"})},
            "maxGpus: 7 is less than the 8 GPUs of resources.train; raise or remove maxGpus",
        ),
        (
            {"maxGpus": 1, **training(claims=claims(2))},
            "maxGpus: 1 is less than the 2 GPUs of resources.train; raise or remove maxGpus",
        ),
        ({"maxGpus": 2, **training()}, NO_WHOLE_GPUS),
        ({"maxGpus": 2, **training(limits={"cpu": 4, "nvidia.com/gpumem": 4})}, NO_WHOLE_GPUS),
        ({"maxGpus": 2, **training(requests={"nvidia.com/gpu": 2}, limits={"nvidia.com/gpu": 0})}, NO_WHOLE_GPUS),
        ({"maxGpus": 2, **training(limits={SLICE: 1})}, NO_WHOLE_GPUS),
        ({"maxGpus": 2, **training(claims=claims(2))}, NO_WHOLE_GPUS),
        (training(limits={"nvidia.com/gpu": 1, "amd.com/gpu": 1}), kinds("train", "amd.com/gpu", "nvidia.com/gpu")),
        (
            training(requests={"gpu.intel.com/xe": 1}, limits={"gpu.intel.com/i915": 1}),
            kinds("train", "gpu.intel.com/i915", "gpu.intel.com/xe"),
        ),
        (training(limits={"nvidia.com/gpu": 1}, claims=claims(1)), kinds("train", "claims", "nvidia.com/gpu")),
        (
            {"resources": {"evaluate": {"limits": {"nvidia.com/gpu": 1, SLICE: 1}}}},
            kinds("evaluate", "nvidia.com/gpu", SLICE),
        ),
        (
            {"maxNodes": 2, **training(limits={"nvidia.com/gpu": 1}, nodes=4)},
            "maxNodes: 2 is less than the 4 nodes of resources.train; raise or remove it",
        ),
        (
            training(limits={"nvidia.com/gpu": 8}, nodes=9),
            "resources.train.nodes: 8 GPUs on each of 9 nodes, but at most 64 train together; lower it",
        ),
        ({"maxNodes": 2, **training(limits={SLICE: 1})}, NO_SLICES),
        (training(limits={SLICE: 1}, nodes=2), NO_SLICES),
        (
            {"maxNodes": 2, **training(limits={"cpu": 4})},
            "maxNodes: needs GPUs in resources.train, for which spec.training.gpus asks; remove it",
        ),
        (
            {"resources": {"merge": {"limits": {"cpu": 4}, "nodes": 2}}},
            "/resources/merge/nodes': maximum: got 2, want 1",
        ),
        ({"maxNodes": 65}, "/maxNodes': maximum: got 65, want 64"),
        ({"resources": {"merge": {"claims": claims(2)}}}, "/resources/merge/claims': maxItems: got 2, want 1"),
        (
            {"resources": {"evaluate": {"limits": {"nvidia.com/gpu": 2}, "nodes": 2}}},
            "/resources/evaluate/nodes': maximum: got 2, want 1",
        ),
        (training(claims=claims(65)), "/resources/train/claims': maxItems: got 65, want 64"),
    ],
)
def test_helm_and_the_operator_refuse_what_no_stage_can_use(
    profile: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "profiles.yaml"
    path.write_text(yaml.safe_dump({"profiles": {"large": {**PROFILE, **profile}}}), encoding="utf-8")

    with pytest.raises(InvalidProfiles):
        load_profiles(path)
    with pytest.raises(Refused) as refusal:
        render({"profiles": {"default": PROFILE, "large": {**PROFILE, **profile}}})

    where = "at '/profiles/large" if complaint.startswith("/") else "profiles.large"
    assert f"{where}{complaint if complaint[0] in '/:' else f'.{complaint}'}" in str(refusal.value)


@pytest.mark.parametrize(
    ("profile", "gpus", "most"),
    [
        ({"maxGpus": 1}, 1, 1),
        ({"maxGpus": 8}, 1, 8),
        ({"maxGpus": None, **training(limits={"nvidia.com/gpu": 4})}, 4, 4),
        ({"maxGpus": 4, **training(requests={"nvidia.com/gpu": 4}, limits={"nvidia.com/gpu": "4"})}, 4, 4),
        ({"maxGpus": 10, **training(limits={"nvidia.com/gpu": 9})}, 9, 10),
        ({"maxGpus": 64, **training(limits={"nvidia.com/gpu": 64, "amd.com/gpu": 0, "x/gpu-memory": 8})}, 64, 64),
        ({"maxGpus": 1, **training(limits={SLICE: 1})}, 1, 1),
        ({"maxGpus": 1, **training()}, 0, 1),
        (training(claims=claims(4)), 4, 4),
        ({"resources": {"evaluate": {"limits": {SLICE: 1}}, "merge": {"claims": claims(1)}}}, 1, 1),
        ({"resources": {"evaluate": {"limits": {"nvidia.com/gpu": 4}}}}, 1, 1),
        ({"resources": {"evaluate": {"claims": claims(4)}}}, 1, 1),
    ],
)
def test_helm_passes_on_what_a_training_can_use(profile: dict[str, Any], gpus: int, most: int, tmp_path: Path) -> None:
    mounted = mounted_profiles({"profiles": {"large": {**PROFILE, **profile}}}, tmp_path)["large"]

    assert (mounted.resources_for(Stage.TRAIN).gpus, mounted.most_gpus) == (gpus, most)


@pytest.mark.parametrize(
    ("profile", "nodes", "most"),
    [
        ({}, 1, 1),
        ({"maxNodes": None}, 1, 1),
        ({"maxNodes": 4}, 1, 4),
        (training(limits={"nvidia.com/gpu": 8}, nodes=8), 8, 8),
        ({"maxNodes": 4, **training(claims=claims(1), nodes=2)}, 2, 4),
        (training(limits={"cpu": 4}, nodes=2), 2, 2),
    ],
)
def test_helm_passes_on_nodes_and_grants_the_right_to_services_with_several(
    profile: dict[str, Any], nodes: int, most: int, tmp_path: Path
) -> None:
    values = {"profiles": {"large": {**PROFILE, **profile}}}
    mounted = mounted_profiles(values, tmp_path)["large"]
    granted = rules(one(render(values), "ClusterRole", CLUSTER_NAME)).get(("", "services"))

    assert (mounted.resources_for(Stage.TRAIN).nodes, mounted.most_nodes) == (nodes, most)
    assert granted == ({"create", "get"} if most > 1 else None)


def test_helm_counts_the_gpus_that_the_operator_counts() -> None:
    template = (CHART / "templates" / "_gpus.tpl").read_text(encoding="utf-8")

    assert f"`^({GPU_PATTERN})$`" in template, "change the names of GPUs in _gpus.tpl too"
