"""Errors of a release."""

from collections.abc import Sequence


class Refused(Exception):
    """There is no release, for one or more reasons; each is a sentence that says what to do."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = tuple(reasons)
