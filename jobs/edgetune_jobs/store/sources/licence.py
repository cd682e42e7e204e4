"""The licence of a base model, by files beside its weights: the front matter of README.md, or the licence itself."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from edgetune_jobs.errors import BASE_FIELD
from edgetune_jobs.store.sources.source import Source

LICENCE_FACT = "license"
"""Fact of prepare: identifier of the base's licence as the Hugging Face hub has it, such as apache-2.0."""

LICENCE_FILE_FACT = "licenseFile"
"""Fact of prepare: the file of the base that says so."""

UNKNOWN = "unknown"
OTHER = "other"

_README = "README.md"
_LICENCE_FILE = re.compile(r"(?i)(licen[cs]e|copying)([-_.][\w.-]*)?")
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_FIELD = re.compile(r"""(?m)^license:[ \t]*\[?["']?([A-Za-z0-9][A-Za-z0-9.+-]{0,63})["']?\]?[ \t\r]*$""")
# What licence texts say in their first lines.
_TEXTS: Mapping[str, re.Pattern[str]] = {
    "apache-2.0": re.compile(r"Apache License\s+Version 2\.0"),
    "mit": re.compile(r"MIT License|Permission is hereby granted, free of charge"),
    "llama3.3": re.compile(r"(?i)llama 3\.3 community license"),
    "llama3.2": re.compile(r"(?i)llama 3\.2 community license"),
    "llama3.1": re.compile(r"(?i)llama 3\.1 community license"),
    "llama3": re.compile(r"(?i)(meta )?llama 3 community license"),
    "llama2": re.compile(r"(?i)llama 2 community license"),
    "gemma": re.compile(r"(?i)gemma terms of use"),
    "bsd-3-clause": re.compile(r"(?i)BSD 3-Clause|Neither the name of"),
    "agpl-3.0": re.compile(r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3"),
    "gpl-3.0": re.compile(r"GNU GENERAL PUBLIC LICENSE\s+Version 3"),
    "cc-by-4.0": re.compile(r"Attribution 4\.0 International"),
    "cc0-1.0": re.compile(r"CC0 1\.0 Universal"),
}


@dataclass(frozen=True)
class Licence:
    """What is known about a base model's licence."""

    identifier: str = UNKNOWN
    """As the Hugging Face hub has it: apache-2.0, llama3.1, other, …; or unknown."""

    file: str = ""
    """The file that says so."""

    @property
    def facts(self) -> dict[str, str]:
        """For the result of prepare, and so for the model card."""
        return {LICENCE_FACT: self.identifier, **({LICENCE_FILE_FACT: self.file} if self.file else {})}

    def warnings(self, uri: str) -> tuple[str, ...]:
        """A warning about an unknown licence."""
        if self.identifier != UNKNOWN:
            return ()
        return (
            f"{BASE_FIELD}: {uri} has no licence file (LICENSE, or README.md with license in its front matter): the "
            "model card says that its licence is unknown",
        )


def find_licence(source: Source) -> Licence:
    """The licence of a base model. README.md comes first, because texts of licences can only be compared.

    Raises:
        AccessDenied, TransientError: a file cannot be read.
    """
    names = sorted({entry.path for entry in source.files} | set(source.ignored))
    if _README in names:
        matter = _FRONT_MATTER.match(_read(source, _README))
        field = _FIELD.search(matter[1]) if matter is not None else None
        if field is not None:
            return Licence(field[1].lower(), _README)
    for name in names:
        if _LICENCE_FILE.fullmatch(name):
            text = _read(source, name)
            known = (identifier for identifier, pattern in _TEXTS.items() if pattern.search(text))
            return Licence(next(known, OTHER), name)
    return Licence()


def _read(source: Source, name: str) -> str:
    return source.read_note(name).decode(errors="replace")
