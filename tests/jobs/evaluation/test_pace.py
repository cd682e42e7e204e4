"""Whether a pass ends before the deadline, by its pace so far."""

import random
from dataclasses import dataclass

import pytest

from edgetune_jobs.evaluation.pace import Pace, TimeLeft, expected_tokens, is_hopeless


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def judge(deadline: float | None, *batches: tuple[float, float]) -> list[tuple[float, float] | None]:
    """Verdicts after batches that end at these seconds, with the share of the pass that is done."""
    clock = Clock()
    pace = Pace(None if deadline is None else clock() + deadline, clock)
    verdicts = []
    for seconds, share in batches:
        clock.now = 100.0 + seconds
        verdicts.append(pace.seconds_too_many(share))
    return verdicts


def test_a_pass_that_ends_before_its_deadline_is_on_time() -> None:
    assert judge(100, (20, 0.25), (40, 0.5), (80, 1.0)) == [None, None, None]


def test_a_pass_that_ends_after_its_deadline_is_late_from_its_second_batch_on() -> None:
    first, second = judge(100, (20, 0.1), (40, 0.2))

    assert first is None
    assert second == pytest.approx((160, 60))


def test_the_first_batch_which_loads_the_model_says_nothing_about_the_pace() -> None:
    assert judge(1000, (600, 0.1), (610, 0.2), (620, 0.3)) == [None, None, None]


def test_a_share_that_is_estimated_lower_than_before_says_nothing_about_the_pace() -> None:
    assert judge(100, (20, 0.3), (40, 0.2)) == [None, None]


def test_without_a_deadline_or_a_known_share_nothing_is_late() -> None:
    assert judge(None, (20, 0.1), (40, 0.2)) == [None, None]
    assert judge(1, (20, 0.0), (40, 0.0), (60, 0.1)) == [None, None, None]


def test_a_pass_that_is_done_is_not_late() -> None:
    assert judge(1, (20, 0.5), (40, 1.0)) == [None, None]


def test_only_a_pass_that_would_be_late_at_twice_its_pace_is_hopeless() -> None:
    assert not is_hopeless(needed=20, left=10)
    assert is_hopeless(needed=20.1, left=10)
    assert is_hopeless(needed=1, left=0)


def test_the_expected_length_of_answers_is_that_of_answers_which_end_at_the_same_rate() -> None:
    draw = random.Random(0)
    lengths = [next((at for at in range(1, 64) if draw.random() < 0.05), 64) for _ in range(4000)]

    expected = expected_tokens(64, ended=sum(length < 64 for length in lengths), decoded=sum(lengths))

    assert expected == pytest.approx(sum(lengths) / len(lengths), rel=0.03)


def test_answers_of_which_none_has_ended_are_expected_to_have_the_maximum_length() -> None:
    assert expected_tokens(64, ended=0, decoded=0) == 64
    assert expected_tokens(64, ended=0, decoded=500) == 64
    assert expected_tokens(64, ended=3, decoded=3) == 1


def test_the_time_of_models_is_that_of_their_answers_and_never_of_the_quick_pass_before() -> None:
    """Loading takes 10 s, the losses of all rows 2 s, all answers 40 s: 52 s a model."""
    clock = Clock()
    left = TimeLeft(models=5, passes=2, clock=clock)
    found = []
    for _ in range(5):
        left.begin_model()
        clock.now += 10
        left.begin_pass()
        clock.now += 2
        found.append(left.seconds(1.0))
        left.begin_pass()
        for share in (0.25, 0.5, 0.75, 1.0):
            clock.now += 10
            found.append(left.seconds(share))

    assert found[0] != found[0]  # unknown: no answer has been measured yet
    assert found[1:5] == pytest.approx([238, 228, 218, 208])
    assert found[1:] == sorted(found[1:], reverse=True)
    assert found[-1] == pytest.approx(0)


def test_the_time_of_models_is_unknown_without_a_share_and_then_that_of_the_models_before() -> None:
    clock = Clock()
    left = TimeLeft(models=2, passes=2, clock=clock)
    left.begin_model()
    left.begin_pass(passes=2)
    clock.now += 30
    unknown = left.seconds(0.0)
    left.begin_model()
    left.begin_pass(passes=2)
    clock.now += 10

    assert unknown != unknown
    assert left.seconds(0.0) == pytest.approx(20)
