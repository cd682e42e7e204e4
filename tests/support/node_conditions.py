"""Conditions under which a process of a node runs that a test starts: it waits less, or its clock is wrong.

Environment:
  EDGETUNE_TEST_WAIT     seconds without a word after which a node is lost, and those that its peers then have to end;
                         the default is that of the product, minutes
  EDGETUNE_TEST_CLOCK    seconds by which the clock of Python is ahead
"""

import os
import time
from functools import partial
from unittest.mock import patch

from edgetune_jobs.runtime.nodes import group, hub
from edgetune_jobs.runtime.ranks import supervisor

WAIT = "EDGETUNE_TEST_WAIT"
CLOCK = "EDGETUNE_TEST_CLOCK"


def apply_conditions() -> None:
    """Run under the conditions of the environment until this process ends."""
    seconds, ahead, now = float(os.environ.get(WAIT, 0)), float(os.environ.get(CLOCK, 0)), time.time
    if seconds:
        timing = partial(hub.Timing, silence=seconds, beat=seconds / 10)
        patience = supervisor.Patience(for_end=seconds, for_saving=seconds)
        patch.object(group, "Timing", timing).start()
        train = partial(supervisor.train_in_ranks, patience=patience)
        patch("edgetune_jobs.runtime.stage_run.train_in_ranks", train).start()
    if ahead:
        patch("time.time", lambda: now() + ahead).start()
