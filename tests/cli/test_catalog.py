"""The catalog of profiles, as the chart writes it."""

import json
from typing import Any

import pytest

from edgetune_cli.kubectl.catalog import read_catalog

CLAIM = {"name": "gpu", "resourceClaimTemplateName": "one-gpu"}


@pytest.mark.parametrize(
    ("profile", "gpu"),
    [
        ({}, "1 nvidia.com/gpu"),
        ({"gpuMemory": "80Gi"}, "1 nvidia.com/gpu (80Gi)"),
        ({"resources": {"train": {"limits": {"amd.com/gpu": 1}}}}, "1 amd.com/gpu"),
        ({"maxGpus": 8}, "1 to 8 nvidia.com/gpu"),
        ({"maxGpus": 8, "maxNodes": 4}, "1 to 8 nvidia.com/gpu on each of 1 to 4 nodes"),
        ({"resources": {"train": {"limits": {"x/gpu": 2}, "nodes": 2}}}, "2 x/gpu on each of 2 nodes"),
        ({"resources": {"train": {"limits": {"nvidia.com/gpu": 4}}}, "maxGpus": 4}, "4 nvidia.com/gpu"),
        ({"resources": {"train": {"claims": [CLAIM]}}, "gpuMemory": "80Gi"}, "1 by claim (80Gi)"),
        ({"resources": {"train": {}}}, ""),
    ],
)
def test_an_entry_names_the_gpu_of_a_training(profile: dict[str, Any], gpu: str) -> None:
    (entry,) = read_catalog({"data": {"profiles.json": json.dumps({"default": profile})}})

    assert entry.gpu == gpu
