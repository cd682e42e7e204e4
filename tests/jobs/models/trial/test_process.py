"""The child process in which a model's files are tried."""

import os
import signal
from collections.abc import Iterator

import pytest

from edgetune_jobs.errors import TransientError
from edgetune_jobs.models.trial.process import TrialProcess

KILLED = "was killed, probably because the container ran out of memory: give the stage prepare more memory"


@pytest.fixture
def trial() -> Iterator[TrialProcess]:
    process = TrialProcess()
    yield process
    process.close()


def test_a_call_that_is_killed_from_outside_is_no_fault_of_the_model(trial: TrialProcess) -> None:
    with pytest.raises(TransientError, match=KILLED):
        trial.call(signal.raise_signal, signal.SIGKILL)

    assert trial.call(os.getpid) != os.getpid(), "the next call has a new process"


def test_killed_with_all_of_its_children_it_is_no_fault_of_the_model_either(trial: TrialProcess) -> None:
    os.killpg(os.getpgid(trial.call(os.getpid)), signal.SIGKILL)

    with pytest.raises(TransientError, match=KILLED):
        trial.call(os.getpid)

    assert trial.call(os.getpid) != os.getpid(), "the next call has a new process"
