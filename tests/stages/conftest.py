"""Tiny models and prepared data, made once per session (the models once per machine)."""

import os
from pathlib import Path

import pytest

# Read by OpenMP when torch is imported: threads that spin lose five times their work where cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from support import tiny_data
from support.tiny_model import make_tiny_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained tiny model, which learns the task in 200 steps."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights, for tests that need no learning."""
    return make_tiny_base(tmp_path_factory.mktemp("random") / "base", pretrain_steps=0)


@pytest.fixture(scope="session")
def few_rows(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of 24 training and 8 evaluation rows, in the tokens of `random_base`."""
    from edgetune_jobs.models.loading import load_tokenizer

    return tiny_data.write_prepared(
        tmp_path_factory.mktemp("few") / "prepared",
        load_tokenizer(random_base),
        tiny_data.training_examples(24),
        tiny_data.held_out_examples(8),
    )


@pytest.fixture(scope="session")
def many_rows(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of 600 training and 64 evaluation rows, in the tokens of `tiny_base`."""
    from edgetune_jobs.models.loading import load_tokenizer

    return tiny_data.write_prepared(
        tmp_path_factory.mktemp("many") / "prepared",
        load_tokenizer(tiny_base),
        tiny_data.training_examples(600),
        tiny_data.held_out_examples(64),
    )
