"""A random model that the tests of this folder share."""

from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune_jobs.models import loading


@pytest.fixture
def model(random_base: Path) -> Any:
    """The base in float32 on the CPU."""
    return loading.load_base(random_base, torch.float32, torch.device("cpu"))


@pytest.fixture
def tokenizer(random_base: Path) -> Any:
    """Its tokenizer."""
    return loading.load_tokenizer(random_base)
