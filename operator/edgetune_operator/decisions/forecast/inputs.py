"""The content of base and data that prepare would find, as far as pins and the last run determine it."""

from dataclasses import dataclass
from typing import Self

from edgetune_contract.digest import prepare_digest, stage_digests
from edgetune_contract.request import Resolved
from edgetune_contract.results.candidates import PossibleFormat, formats_to_write
from edgetune_contract.spec import BaseModelSpec, DataSource, EdgeFormat, Parameters
from edgetune_contract.stages import Stage
from edgetune_contract.values.quantities import parse_bytes
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.api.status.stage_status import StageState, StageStatus

_SHA256_DIGITS = 64
# Two placeholders for unknown content: a digest that differs between them depends on it.
_UNKNOWN = ("0" * _SHA256_DIGITS, "1" * _SHA256_DIGITS)

# Stages whose digests do not cover the formats of the edge model.
_BEFORE_FORMATS = (Stage.TRAIN, Stage.MERGE)


@dataclass(frozen=True)
class Inputs:
    """Content digests of base and data; None if unknown."""

    parameters: Parameters
    base: str | None
    train: str | None
    eval: str | None
    possible: tuple[PossibleFormat, ...] = ()
    """With formats Auto: the formats that this base can be written in; empty if unknown."""

    written: tuple[EdgeFormat, ...] = ()
    """With formats Auto: those that the last run has written; empty if it has not."""

    @classmethod
    def expected(cls, parameters: Parameters, before: Parameters | None, previous: LoraFineTuneStatus) -> Self:
        """Inputs of a run: a pinned revision is the content; other inputs are assumed unchanged since the last run.

        Args:
            parameters: parameters of the next run.
            before: parameters of the last run; None if there was none or they are unknown.
            previous: the status of the last run.
        """
        found = previous.resolved
        row = next((row for row in previous.stages if row.name is Stage.PREPARE), StageStatus(name=Stage.PREPARE))
        # If prepare did not finish, the status still has the inputs of the prepare before it, whose URIs are unknown.
        candidates = (parameters, before) if row.state is StageState.SUCCEEDED else ()
        was = next((each for each in candidates if each is not None and row.digest == prepare_digest(each)), None)
        base, train, evaluation = parameters.base_model, parameters.dataset.train, parameters.dataset.eval
        known_base = _content(base, was.base_model if was else None, found.base if found else None)
        is_same_base = found is not None and known_base == found.base
        return cls(
            parameters=parameters,
            base=known_base,
            possible=(found.possible or ()) if found is not None and is_same_base else (),
            written=(found.formats or ()) if found is not None and is_same_base else (),
            train=_content(train, was.dataset.train if was else None, found.train if found else None),
            eval=_content(evaluation, was.dataset.eval if was else None, found.eval if found else None),
        )

    def resolved(self) -> Resolved:
        """The content digests, with a placeholder for each unknown one."""
        return self._resolved(_UNKNOWN[0])

    def known_digests(self, name: str) -> dict[Stage, str]:
        """Digests of the stages after prepare that depend on known content only."""
        one, other = (stage_digests(self.parameters, self._resolved(unknown), name) for unknown in _UNKNOWN)
        known = {stage: digest for stage, digest in one.items() if other[stage] == digest}
        if self.parameters.quantization.is_auto and self._formats() is None:
            return {stage: digest for stage, digest in known.items() if stage in _BEFORE_FORMATS}
        return known

    @property
    def added_formats(self) -> tuple[EdgeFormat, ...]:
        """With formats Auto: what quantize would write beyond what the last run has written."""
        return tuple(each for each in self._formats() or () if self.written and each not in self.written)

    def _resolved(self, unknown: str) -> Resolved:
        has_eval = self.parameters.dataset.eval is not None
        return Resolved(
            base=self.base or unknown,
            train=self.train or unknown,
            eval=(self.eval or unknown) if has_eval else None,
            possible=self.possible or None,
            formats=self._formats(),
        )

    def _formats(self) -> tuple[EdgeFormat, ...] | None:
        """The formats that prepare would let quantize write, as far as the last run determines them: what it has
        written, unless the limit needs more."""
        if not self.parameters.quantization.is_auto or not self.possible:
            return None
        limit = self.parameters.evaluation.gates.max_edge_bytes
        most_bytes = None if limit is None else parse_bytes(limit)
        return formats_to_write(self.possible, most_bytes, lambda formats: formats == self.written) or None


def _content(
    source: BaseModelSpec | DataSource | None, before: BaseModelSpec | DataSource | None, found: str | None
) -> str | None:
    if source is None:
        return None
    if len(source.revision) == _SHA256_DIGITS:
        return source.revision
    return found if before is not None and _identity(source) == _identity(before) else None


def _identity(source: BaseModelSpec | DataSource) -> tuple[str, str]:
    """What identifies the content: the URI and, for a model from the hub, the commit."""
    is_on_hub = isinstance(source, BaseModelSpec) and source.is_on_hub
    return source.uri, source.revision if is_on_hub else ""
