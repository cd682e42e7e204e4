"""The goals of a GPU check, and the table of its figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.gpu_check.runner import Outcome
from bench.report import print_table
from edgetune_contract.spec import Method

FiguresOf = Mapping[str, Mapping[str, Any]]
"""Figures by the names of their steps."""


@dataclass(frozen=True)
class Goal:
    """A figure that is computed from those of the steps, and what it must be."""

    name: str
    figure: Callable[[FiguresOf], float]
    least: float | None = None
    most: float | None = None

    @property
    def bounds(self) -> str:
        """The goal as text."""
        least = "" if self.least is None else f"at least {self.least:,g}"
        most = "" if self.most is None else f"at most {self.most:,g}"
        return " and ".join(each for each in (least, most) if each)

    def verdict(self, figure: float) -> str:
        """Whether a figure meets the goal."""
        is_met = (self.least is None or figure >= self.least) and (self.most is None or figure <= self.most)
        return "met" if is_met else "MISSED"


def _speed(step: str) -> Callable[[FiguresOf], float]:
    return lambda figures: float(figures[step]["tokensPerSecond"])


def _ratio(over: str, under: str) -> Callable[[FiguresOf], float]:
    return lambda figures: _speed(over)(figures) / _speed(under)(figures)


def _largest_error(method: Method) -> Callable[[FiguresOf], float]:
    """The largest difference between estimate and peak of this method's trainings, as a share of the peak."""

    def figure(figures: FiguresOf) -> float:
        of_method = (each for name, each in figures.items() if name.startswith(f"{method}, "))
        errors = [abs(float(each["estimateError"])) for each in of_method if "estimateError" in each]
        if not errors:
            raise KeyError(method)
        return max(errors)

    return figure


GOALS = (
    Goal("QLoRA, tokens/s (for an H100)", _speed("QLoRA, ours"), least=9500),
    Goal("QLoRA, ours / bare trl", _ratio("QLoRA, ours", "QLoRA, bare trl"), least=1.6),
    Goal("QLoRA, as trl / bare trl", _ratio("QLoRA, as trl", "QLoRA, bare trl"), least=0.98),
    Goal("LoRA, as trl / bare trl", _ratio("LoRA, as trl", "LoRA, bare trl"), least=0.98),
    Goal("short rows, padding-free / padded", _ratio("short rows, PaddingFree", "short rows, Padded"), least=2),
    Goal("QLoRA, largest error of the estimate", _largest_error(Method.QLORA), most=0.15),
    Goal("LoRA, largest error of the estimate", _largest_error(Method.LORA), most=0.15),
    Goal("NF4 codes that differ from the CPU's", lambda all_: float(all_["NF4 codes"]["differingCodes"]), most=0),
    Goal("varlen, error / that of SDPA", lambda all_: float(all_["varlen attention"]["errorRatio"]), most=1.1),
    Goal(
        "varlen, time / that of padded SDPA",
        lambda all_: all_["varlen attention"]["varlenMs"] / all_["varlen attention"]["paddedSdpaMs"],
        most=1,
    ),
    Goal(
        "SIGTERM, steps lost",
        lambda all_: float(all_["SIGTERM and resume"]["stoppedAfter"] - all_["SIGTERM and resume"]["resumedFrom"]),
        most=0,
    ),
    Goal(
        "two ranks, difference of the losses",
        lambda all_: float(all_["two ranks on one device"]["largestLossDifference"]),
        most=0.01,
    ),
)


def print_goals(outcomes: Sequence[Outcome], *, is_rehearsal: bool) -> None:
    """Print what was measured beside its goal, and the steps."""
    figures = {each.step: each.figures for each in outcomes}
    rows = []
    for goal in GOALS:
        try:
            found = goal.figure(figures)
        except KeyError:
            rows.append([goal.name, "-", goal.bounds, "not measured"])
            continue
        verdict = "rehearsed" if is_rehearsal else goal.verdict(found)
        rows.append([goal.name, f"{found:,.3g}" if found < 1000 else f"{found:,.0f}", goal.bounds, verdict])
    card = figures.get("environment", {}).get("card", "unknown card")
    print_table(f"GPU check: {card}", ["", "measured", "goal", ""], rows)
    steps = [[each.step, each.status, f"{each.seconds:.1f}"] for each in outcomes]
    print_table("Steps", ["", "ended", "s"], steps)
