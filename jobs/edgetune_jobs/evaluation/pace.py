"""The pace of a training, or of passes over the evaluation rows: how long they take, and whether that is too long."""

import time
from collections.abc import Callable
from math import nan
from statistics import fmean

OnBatch = Callable[[int, float], None]
"""(rows, share) -> None: called after each batch of a pass with the rows that it finished, and the expected share of
the pass that is done; 0 if that is unknown."""

# The share is an estimate: answers of the rows to come may be shorter.
_CERTAINLY_TOO_SLOW = 2


def expected_tokens(most: int, ended: int, decoded: int) -> float:
    """Expected length of the rest of an answer of at most `most` tokens.

    Each token ends an answer with the same probability, which is estimated from the tokens decoded so far (maximum
    likelihood of a geometric distribution with censored observations).

    Args:
        most: the answer ends after this number of tokens in any case.
        ended: answers that an end token has ended so far.
        decoded: tokens decoded so far.
    """
    rate = ended / decoded if decoded else 0.0
    return float(most) if rate == 0 else (1 - (1 - min(rate, 1.0)) ** most) / rate


class Pace:
    """The pace of one pass after its first batch, during which llama.cpp loads the model and libraries warm up."""

    def __init__(self, deadline: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            deadline: time by the clock at which the stage is ended; None if it is not.
            clock: returns seconds.
        """
        self._deadline, self._clock = deadline, clock
        self._first: tuple[float, float] | None = None
        """End of the first batch by the clock, and the share that was done then."""

    def seconds_too_many(self, share: float) -> tuple[float, float] | None:
        """Expected seconds that the pass still takes, and seconds to the deadline; None if the pass ends before it, or
        if that is unknown. Call it after each batch.

        Args:
            share: share of the pass that is done, 0 to 1; 0 if it is unknown.
        """
        now = self._clock()
        if self._first is None:
            self._first = (now, share) if share > 0 else None
            return None
        began, before = self._first
        if self._deadline is None or not before < share < 1:
            return None
        needed = (now - began) * (1 - share) / (share - before)
        left = max(self._deadline - now, 0.0)
        return (needed, left) if needed > left else None


class TimeLeft:
    """The expected time until several models have answered the same rows.

    It counts seconds of models, not rows: a row takes far longer to be answered than to get a loss.
    """

    def __init__(self, models: int, passes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            models: number of models.
            passes: over the rows of each; the last one takes most of the time.
            clock: returns seconds.
        """
        self._models, self._passes, self._clock = models, passes, clock
        self._took: list[float] = []
        self._began: float | None = None
        self._pass_began, self._passes_begun = 0.0, 0

    def begin_model(self) -> None:
        """The next model is loaded; the one before is done."""
        now = self._clock()
        if self._began is not None:
            self._took.append(now - self._began)
        self._began, self._passes_begun = now, 0

    def begin_pass(self, passes: int = 1) -> None:
        """A pass begins, or so many passes in one."""
        self._pass_began = self._clock()
        self._passes_begun += passes

    def seconds(self, share: float) -> float:
        """Expected seconds to the end of the last model; NaN before the first model's last pass.

        Args:
            share: share of the pass that is done, 0 to 1; 0 if it is unknown.
        """
        now, began = self._clock(), self._began
        is_known = self._passes_begun >= self._passes and share > 0
        if began is None or not (is_known or self._took):
            return nan
        takes = self._pass_began - began + (now - self._pass_began) / share if is_known else fmean(self._took)
        further = self._models - len(self._took) - 1
        return max(takes - (now - began), 0.0) + max(further, 0) * fmean([*self._took, takes])


def late_message(work: str, units: str, needed: float, left: float) -> str:
    """Says that work ends after the deadline.

    Args:
        work: what is done, as a subject.
        units: of what its pace is known.
        needed: expected seconds that it still takes.
        left: seconds to the deadline.
    """
    return (
        f"{work} takes about {needed:,.0f} s more at the pace of its first {units}, but spec.activeDeadlineSeconds "
        f"ends the stage in at most {left:,.0f} s"
    )


def training_watch(deadline: float | None, say: Callable[[str], None]) -> Callable[[float], None]:
    """A function to call after each step with the share of the steps that is done, 0 to 1.

    It says once that training ends after the deadline. Nothing is ended, because a retry resumes from the checkpoint.
    """
    pace, is_said = Pace(deadline), False

    def after_step(share: float) -> None:
        nonlocal is_said
        late = None if is_said else pace.seconds_too_many(share)
        if late is not None:
            is_said = True
            message = late_message("training", "steps", *late)
            say(f"{message}; raise it for the next retry, which resumes from the newest checkpoint")

    return after_step


def is_hopeless(needed: float, left: float) -> bool:
    """Whether a pass ends after its deadline even if its rest is much faster than expected."""
    return needed > _CERTAINLY_TOO_SLOW * left
