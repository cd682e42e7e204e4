"""Signs published versions: the files of each artifact by model-signing, and the version's document by its provenance.

No file is read: the digests are those in the manifests.
"""

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from edgetune_contract.digest import provenance_key, signature_key
from edgetune_contract.pipeline import is_edge
from edgetune_contract.request import FileEntry
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.signing.bundle import write_bundle
from edgetune_jobs.publishing.signing.checks import check_document
from edgetune_jobs.publishing.signing.keys import PrivateKey, read_private_key
from edgetune_jobs.publishing.signing.provenance import Build, provenance
from edgetune_jobs.store.manifests import find_artifact, read_manifest
from edgetune_jobs.store.store import Store, uri_of


class VersionSigner:
    """Signs versions of models in a store with one key."""

    def __init__(self, store: Store, key: Path, image: str, source_revision: str) -> None:
        """Nothing is read yet.

        Args:
            store: the store.
            key: PEM file with the private key.
            image: reference of this process's container image; empty outside a container.
            source_revision: Git commit of the object; empty if it is not known.
        """
        self._store = store
        self._file = key
        self._build = Build(metadata.version("edgetune"), image, source_revision)

    def sign(self, document: VersionDocument, data: bytes) -> None:
        """Write the signatures of a version, unless the store has them by this key. The provenance is written last.

        Args:
            document: the version.
            data: the bytes of its document.

        Raises:
            InvalidInput: the key cannot sign.
        """
        key = read_private_key(self._file)
        if self._is_signed(document, data, key):
            return
        for artifact, files in self._files(document).items():
            self._store.put(signature_key(document.model, document.version, artifact), sign_files(key, artifact, files))
        statement = provenance(document, data, self._build)
        self._store.put(provenance_key(document.model, document.version), write_bundle(statement, key))

    def _is_signed(self, document: VersionDocument, data: bytes, key: PrivateKey) -> bool:
        place = provenance_key(document.model, document.version)
        found = self._store.read(place)
        if found is None:
            return False
        try:
            check_document(found.data, uri_of(self._store, place), document, data, [key.public])
        except InvalidInput:
            return False
        return True

    def _files(self, document: VersionDocument) -> Mapping[str, Sequence[FileEntry]]:
        """Files of the edge models with their cards, and of the other artifacts that the store has."""
        files = {edge.artifact.name: edge.all_files for edge in document.edges}
        for stage, origin in document.provenance.stages.items():
            manifest = read_manifest(self._store, stage, origin.digest)
            if manifest is None:  # of a copy of the edge model alone
                continue
            for artifact in manifest.result.artifacts:
                # A candidate that was not chosen is no model of this version.
                found = None if is_edge(artifact.name) else find_artifact(manifest, artifact.name)
                if found is not None:
                    files.setdefault(artifact.name, found.files)
        return files


def is_signed(store: Store, name: str, version: str) -> bool:
    """Whether a version of a model has a signature, by whatever key."""
    return store.read(provenance_key(name, version)) is not None


def sign_files(key: PrivateKey, name: str, files: Sequence[FileEntry]) -> bytes:
    """Signature of files in the format of model-signing: a Sigstore bundle, as JSON.

    Args:
        key: signs.
        name: of the folder, which is informative.
        files: paths relative to the folder, with their SHA-256.
    """
    # The public functions of model-signing only sign folders that they can read. Its release is bounded, and the tests
    # verify with its command line.
    from model_signing._hashing.hashing import Digest
    from model_signing._signing.sign_ec_key import Signer
    from model_signing._signing.signing import Payload
    from model_signing.manifest import Manifest, SerializationType

    serialization = SerializationType.from_args({"method": "files", "hash_type": "sha256", "allow_symlinks": False})
    items = [serialization.new_item(each.path, Digest("sha256", bytes.fromhex(each.sha256))) for each in files]
    signature: Any = Signer(key.file).sign(Payload(Manifest(name, items, serialization)))
    text: str = signature.bundle.to_json()
    return text.encode()
