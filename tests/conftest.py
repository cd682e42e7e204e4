"""Fixtures for several folders of tests: S3 servers, stores, tiny models and their data."""

import gc
import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.store import Store
from support import llama_cpp, tiny_data
from support.fault_proxy import FaultProxy, running_proxy
from support.tiny_model import make_tiny_base
from support.versitygw import S3Server, running_server

# No deadline: other work shares the machine, so the time of one example depends on more than the code.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")


def pytest_configure(config: pytest.Config) -> None:
    """Set what OpenMP reads when torch is imported, here and in child processes; let both end at Ctrl-C; hide llama.cpp
    from them."""
    llama_cpp.hide()
    # A shell ignores SIGINT in what it starts in the background, and child processes would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # On shared cores, spinning threads make it up to five times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    workers: int = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files, for `--numprocesses`."""
    from support.scheduling import FileScheduling

    return FileScheduling(config, log)


def pytest_collection_finish() -> None:
    """Let the garbage collector skip the objects of the imported libraries in each of its runs."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server for the whole test session."""
    with running_server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


@pytest.fixture
def s3_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy in front of the S3 server, without faults."""
    with running_proxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def s3_prefix() -> str:
    """A prefix of the bucket that no other test uses."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3_prefix: str) -> Store:
    """An empty store: each test runs once with a local folder and once with a real bucket."""
    if request.param == "folder":
        return LocalFolderStore((tmp_path / "store").as_uri())
    server: S3Server = request.getfixturevalue("s3_server")
    return S3Store(server.location(s3_prefix).uri, server.client())


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """torch computes on two threads, for tests of equal bits: the order in which it adds numbers depends on threads."""
    import torch

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")
        torch.set_num_threads(2)
        yield
    torch.set_num_threads(before)


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
