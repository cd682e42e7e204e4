"""Tutorials as tests: the blocks of a page, run in order in a temporary folder, and their output compared.

A fenced block is one of these, by its language and by comments in the lines above it, which readers do not see:

    ```console                           commands after `$ `, each with what it prints; a command continues after `\\`
    <!-- file: tickets.yaml -->          the block is the content of this file
    <!-- changes: tickets.yaml -->       the block is merged into the YAML in this file, as a reader would edit it
    <!-- not run here: no cluster -->    neither run nor written; the test prints the reason
    <!-- exit code: 1 -->                the last command of the block ends with this code; without it, all end with 0
    <!-- figures differ: small model --> numbers, sizes, times and digests may be others; words may not

In the expected output, `…` is any text, also of several lines, and white space may differ. A digest that differs from
the page's takes its place in the rest of the page, so that a reader's version can be pinned.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cluster.binaries import find
from edgetune_operator.api import names
from support.apiserver import REPOSITORY

FOLDER = REPOSITORY / "docs" / "tutorials"
# Only for commands that hang: beside other work, a run of some seconds took minutes.
LIMIT_SECONDS = 1200
_COMMENT = re.compile(r"<!-- (not run here|file|changes|exit code|figures differ): (.+?) -->")
_USES_OBJECTS = re.compile(r"^edgetune (run|plan)\b", re.MULTILINE)
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)$")
_UNIT = r"(?: ?(?:%|(?:[kMGT]i?)?B|ms|s|min|h)(?![A-Za-z]))?"
_DIGEST = re.compile(r"\b[0-9a-f]{12,64}\b")
_FIGURE = re.compile(rf"(?P<digest>{_DIGEST.pattern})|(?<![\w#])[-+]?\d[\d.,:]*(?:-[\d-]+)?(?:T[\d:+]+)?{_UNIT}")
Document = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """A command, and what it prints."""

    text: str
    expected: str = ""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of its fence in the page, from 1.
        marks: what the comments above it say, by their first words.
    """

    page: str
    line: int
    language: str
    text: str
    marks: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> tuple[Command, ...]:
        """The commands of a console block, in order."""
        found: list[Command] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append(Command(line.removeprefix("$ ")))
            elif found and found[-1].text.endswith("\\") and not found[-1].expected:
                found[-1] = Command(f"{found[-1].text}\n{line}")
            elif found:
                found[-1] = Command(found[-1].text, f"{found[-1].expected}{line}\n")
        return tuple(found)

    @property
    def is_run_or_marked(self) -> bool:
        """Whether the block does something in a test, or says why not."""
        return bool(self.commands) or bool({"file", "changes", "not run here"} & set(self.marks))


def blocks_of(page: str, text: str) -> list[Block]:
    """All fenced blocks of a page, in order.

    Raises:
        ValueError: a fence is not closed, or a comment belongs to no block.
    """
    blocks: list[Block] = []
    marks: dict[str, str] = {}
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if mark := _COMMENT.search(line):
            marks[mark[1]] = mark[2]
        elif fence := _FENCE.match(line):
            body = []
            for _, inner in lines:
                if inner.strip() == "```":
                    break
                body.append(inner.removeprefix(fence["indent"]))
            else:
                raise ValueError(f"{page}:{number}: the block is not closed")
            blocks.append(Block(page, number, fence["language"], "\n".join(body) + "\n", marks))
            marks = {}
        elif line.strip() and marks:
            raise ValueError(f"{page}:{number}: a comment must be right above its block")
    return blocks


def tutorial(page: str) -> list[Block]:
    """The blocks of a tutorial, such as `own-data.md`."""
    return blocks_of(page, (FOLDER / page).read_text(encoding="utf-8"))


def matches(expected: str, printed: str, *, any_figures: bool = False) -> dict[str, str] | None:
    """What was printed in place of each digest of the page, or None if a command did not print what the page says.

    With `any_figures`, a digest of the page is any other one, but the same one wherever the page has it.
    """
    digests: dict[str, str] = {}

    def pattern_of(word: str) -> str:
        if not any_figures or not _DIGEST.fullmatch(word):
            return re.escape(word)
        if word in digests:
            return f"(?P={digests[word]})"
        digests[word] = f"digest{len(digests)}"
        return f"(?P<{digests[word]}>{_DIGEST.pattern})"

    parts = []
    for part in expected.split("…"):
        words = re.split(f"({_DIGEST.pattern})", _plain(part, any_figures=any_figures))
        parts.append(rf"\s*{''.join(map(pattern_of, words))}\s*")
    found = re.fullmatch(".*?".join(parts), _plain(printed, any_figures=any_figures), re.DOTALL)
    return None if found is None else {word: found[name] for word, name in digests.items()}


def _plain(text: str, *, any_figures: bool) -> str:
    text = " ".join(text.split())
    return _FIGURE.sub(lambda found: found["digest"] or "#", text) if any_figures else text


@dataclass
class Reader:
    """Somebody who follows tutorials in a shell. Variables and the working folder last from command to command.

    It prints every command with its output, and every block that is not run with the reason.

    Attributes:
        home: folder where the tutorial begins.
        variables: of the shell, besides those of this process.
        prepare: is called with each LoraFineTune in the folder before `edgetune run` and `plan`, and may change it.
    """

    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Document], None] = lambda _: None
    _digests: dict[str, str] = field(default_factory=dict)
    _seen: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._state = self.home.with_name(f"{self.home.name}-shell")
        self._state.mkdir(exist_ok=True)
        (self._state / "folder").write_text(str(self.home), encoding="utf-8")
        (self._state / "variables").write_text("", encoding="utf-8")

    def save(self, target: Path) -> None:
        """Copy what the reader has to a new folder."""
        shutil.copytree(self.home, target, symlinks=True)

    def begin_again(self, saved: Path) -> None:
        """Begin with what was saved, in the same folder: a plan names addresses of inputs that have changed."""
        shutil.rmtree(self.home)
        shutil.copytree(saved, self.home, symlinks=True)
        self._digests.clear()
        self.__post_init__()

    @property
    def folder(self) -> Path:
        """The folder that the shell is in."""
        return Path((self._state / "folder").read_text(encoding="utf-8").strip())

    def follow(self, page: str) -> None:
        """Do everything that a tutorial says.

        Raises:
            AssertionError: a command ends with another code, or prints something else.
        """
        for block in tutorial(page):
            self.do(block)

    def do(self, block: Block) -> None:
        """Run, write or skip one block."""
        if reason := block.marks.get("not run here"):
            print(f"{block.place}: not run here: {reason}")
        elif name := block.marks.get("file"):
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._known(block.text), encoding="utf-8")
        elif name := block.marks.get("changes"):
            path = self.folder / name
            merged = _merged(yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(self._known(block.text)))
            path.write_text(yaml.safe_dump(merged, sort_keys=False), encoding="utf-8")
        else:
            self._run(block)

    def _run(self, block: Block) -> None:
        assert block.commands, f"{block.place}: there is nothing to run in it: mark it `not run here`"
        commands = block.commands
        for command in commands:
            if _USES_OBJECTS.search(command.text):
                self._prepare_objects()
            code, printed = self.run(self._known(command.text))
            print(f"{block.place}: $ {command.text}\n{printed}")
            allowed = int(block.marks.get("exit code", 0)) if command is commands[-1] else 0
            where = f"{block.place}: $ {command.text}\n"
            assert code == allowed, f"{where}ended with {code}:\n{printed}"
            expected = self._known(command.expected)
            digests = matches(expected, printed, any_figures="figures differ" in block.marks)
            assert digests is not None, f"{where}printed:\n{printed}\n--- instead of:\n{expected}"
            self._digests |= digests

    def _known(self, text: str) -> str:
        """The text with those digests that were printed in place of the page's."""
        return _DIGEST.sub(lambda found: self._digests.get(found[0], found[0]), text)

    def run(self, command: str) -> tuple[int, str]:
        """Exit code and output of a command in the shell."""
        script = (
            f'. "{self._state}/variables"; cd "$(cat "{self._state}/folder")"\n{command}\n'
            f'code=$?; pwd > "{self._state}/folder"; export -p > "{self._state}/variables"; exit $code'
        )
        done = subprocess.run(
            ["bash", "-c", script],
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120", "NO_COLOR": "1", **self.variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        return done.returncode, done.stdout

    def _prepare_objects(self) -> None:
        for path in self.home.rglob("*.yaml"):
            if any(part.startswith(".") for part in path.relative_to(self.home).parts):
                continue
            text = path.read_text(encoding="utf-8")
            if self._seen.get(path) == text or f"kind: {names.KIND}" not in text or "{{" in text:
                continue
            documents = [each for each in yaml.safe_load_all(text) if each is not None]
            for document in documents:
                if document.get("kind") == names.KIND:
                    self.prepare(document)
            changed = yaml.safe_dump_all(documents, sort_keys=False)
            if documents != list(yaml.safe_load_all(text)):
                path.write_text(changed, encoding="utf-8")
            self._seen[path] = path.read_text(encoding="utf-8")


def _merged(document: Any, changes: Any) -> Any:
    if not isinstance(document, dict) or not isinstance(changes, dict):
        return changes
    return document | {name: _merged(document.get(name), value) for name, value in changes.items()}


def write_programs(folder: Path, *, python: str) -> Path:
    """A folder for the PATH with the commands of this checkout, and with kubectl and helm if they are in the cache."""
    folder.mkdir()
    for name, module in (("edgetune", "edgetune_cli"), ("kubectl-edgetune", "edgetune_cli.kubectl")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{python}" -m {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    for name in ("kubectl", "helm"):
        if found := find(name):
            (folder / name).symlink_to(found)
    return folder


NewReader = Callable[..., Reader]
"""Makes a reader in a checkout with the model `base`; further arguments are variables of the shell."""
