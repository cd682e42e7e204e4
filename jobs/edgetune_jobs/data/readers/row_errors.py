"""Row errors: invalid rows and files of a data set, reported together in one message."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from edgetune_jobs.data.readers.rows import BadRow, Place
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.wording import count

MOST_LISTED = 20
# Reading on would only count: a file of another kind, or a bomb, can have thousands of millions of invalid rows.
MOST_COUNTED = 10_000
_LONGEST_REASON = 300


@dataclass
class RowErrors:
    """Invalid rows and files: the first 20 with place and reason, and the total."""

    total: int = 0
    listed: list[tuple[str, BadRow]] = field(default_factory=list)
    """Spec field of the data set, and the error."""

    @property
    def is_full(self) -> bool:
        """Whether there are so many errors that reading on is of no use."""
        return self.total >= MOST_COUNTED

    def add(self, spec_field: str, bad: BadRow) -> None:
        """Add an error."""
        self.total += 1
        if len(self.listed) < MOST_LISTED:
            self.listed.append((spec_field, bad))

    def raise_if_any(self) -> None:
        """
        Raises:
            InvalidInput: there are errors; the message has their number, and the first 20 with place and reason.
        """
        if self.total:
            raise InvalidInput("\n".join((self._heading(), *self._lines())))

    def _heading(self) -> str:
        rows = count(self.total, "invalid row or file", "invalid rows or files")
        shown = f" (showing the first {MOST_LISTED})" if self.total > MOST_LISTED else ""
        if self.is_full:
            rows = f"at least {rows}, and was not read further"
        return f"the data has {rows}; fix or remove {'it' if self.total == 1 else 'them'}{shown}:"

    def _lines(self) -> Iterator[str]:
        """One line per error; consecutive errors of one file with the same reason share a line."""
        for (spec_field, file, reason), group in groupby(
            self.listed, key=lambda entry: (entry[0], entry[1].place.file, entry[1].reason)
        ):
            places = [bad.place for _, bad in group]
            shown = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"
            yield f"{spec_field}: {_join(file, places)}: {shown}"


def _join(file: str, places: list[Place]) -> str:
    numbers = [place.number for place in places if place.number is not None]
    if len(places) == 1 or len(numbers) != len(places):
        return str(places[0])
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        shown = f"{numbers[0]} to {numbers[-1]}"
    else:
        shown = ", ".join(str(number) for number in numbers)
    return f"{file} {places[0].unit}s {shown}"
