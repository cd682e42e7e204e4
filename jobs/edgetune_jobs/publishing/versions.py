"""Versions of one model in a store: list them, and find one by its digest or the first digits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from edgetune_contract.digest import version_key, versions_key
from edgetune_contract.request import Digest
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.store.parallel import for_each
from edgetune_jobs.store.store import Store, read_model, stored_sizes, uri_of
from edgetune_jobs.wording import some

_MOST_LISTED = 10
_SHORT_DIGEST = 12


@dataclass(frozen=True)
class KnownVersion:
    """A version with a document in the store."""

    version: Digest
    document: VersionDocument | None
    """None if the document cannot be read."""

    problem: str = ""
    """Why it cannot be read."""

    def __str__(self) -> str:
        short = self.version[:_SHORT_DIGEST]
        if self.document is None:
            return f"{short} (unreadable)"
        edge = self.document.scores.edge
        score = "" if edge is None else f", edge score {edge:.1%}"
        refused = "" if self.document.published else ", refused by its gates"
        return f"{short} ({self.document.created_at}{score}{refused})"


class Versions:
    """The versions of one model."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    def read(self, version: str) -> VersionDocument | None:
        """Document of a version, by its full digest.

        Raises:
            InvalidInput: the document cannot be read.
        """
        return read_model(self._store, version_key(self._name, version), VersionDocument)

    def digests(self) -> list[str]:
        """Digests of all versions, sorted."""
        folder = PurePosixPath(versions_key(self._name))
        keys = (PurePosixPath(found.key) for found in self._store.list(str(folder)))
        return [key.stem for key in keys if key.suffix == ".json" and key.parent == folder]

    def all(self) -> list[KnownVersion]:
        """All versions, newest first; those whose document cannot be read come last."""
        return self._known(self.digests())

    def find(self, pin: str, field: str = "spec.publish.pin") -> VersionDocument:
        """The published version whose digest begins with `pin`, which `field` has.

        Raises:
            InvalidInput: there is none, or several, or the gates refused it; the message lists the versions.
        """
        document = self.find_any(pin, field)
        if not document.published:
            refusals = "; ".join(document.refusals)
            raise InvalidInput(
                f"{field}: the gates refused version {pin} ({refusals}); pin a published version; {_listed(self.all())}"
            )
        return document

    def find_any(self, digits: str, field: str) -> VersionDocument:
        """The version whose digest begins with `digits`, which `field` has, whether published or refused.

        Raises:
            InvalidInput: there is none, or several; the message lists the versions.
        """
        digests = self.digests()
        matches = [digest for digest in digests if digest.startswith(digits)]
        if len(matches) != 1:
            found = f"{len(matches)} versions of {self._name} begin with" if matches else f"{self._name} has no version"
            raise InvalidInput(f"{field}: {found} {digits}; {_listed(self._known(matches or digests))}")
        (version,) = self._known(matches)
        if version.document is None:
            raise InvalidInput(f"{field}: {version.problem}")
        return version.document

    def require_files(self, document: VersionDocument) -> None:
        """Check that all files of a version's edge model, in all its formats, and its model cards are in the store with
        their sizes.

        Raises:
            InvalidInput: a file is missing or has another size.
        """
        for edge in document.edges:
            stored = stored_sizes(self._store, edge.key, edge.files)
            stored |= stored_sizes(self._store, document.cards_key(edge.artifact.name), edge.cards)
            for key, entry in document.keys_of(edge):
                size = stored.get(key)
                if size == entry.bytes:
                    continue
                problem = "is missing" if size is None else f"has {size:,} bytes instead of {entry.bytes:,}"
                raise InvalidInput(
                    f"the pointer cannot move to version {document.version[:_SHORT_DIGEST]} of {self._name}: "
                    f"{uri_of(self._store, key)} {problem}; restore it, or pin another version"
                )

    def _known(self, digests: Sequence[str]) -> list[KnownVersion]:
        known: list[KnownVersion] = []

        def read(digest: str, _: object) -> None:
            try:
                document, problem = self.read(digest), ""
            except InvalidInput as error:
                document, problem = None, str(error)
            if document is not None or problem:  # else it was deleted since the listing
                known.append(KnownVersion(digest, document, problem))

        for_each(digests, read)
        known.sort(key=lambda each: (each.document.created_at if each.document else "", each.version), reverse=True)
        return known


def _listed(versions: Sequence[KnownVersion]) -> str:
    if not versions:
        return "it has no versions"
    return f"versions, newest first: {some(map(str, versions), _MOST_LISTED)}"
