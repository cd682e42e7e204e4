"""Base models on the Hugging Face hub, at one commit."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from edgetune_contract.request import FileEntry
from edgetune_contract.spec import HUB_SCHEME
from edgetune_jobs.errors import AccessDenied, InvalidInput, TransientError
from edgetune_jobs.store.files import checked_relative, file_list_digest, fingerprint, read_range
from edgetune_jobs.store.sources.source import MOST_NOTE_BYTES, SourceKind, check_paths, is_hidden

_MOST_DOWNLOADED = 2**20


class HubSource:
    """The files of a model repository at a commit.

    The file list has the hub's SHA-256 of large files, and the SHA-256 of the git blob ID of small ones.
    """

    def __init__(self, uri: str, revision: str, field: str, token: str | None, target: Path) -> None:
        """The hub is asked only when the files are needed.

        Args:
            uri: hf://organization/name.
            revision: the 40-digit commit; a branch only for `commit`.
            field: path of the source in the spec, for messages.
            token: access token of the hub; None for public models.
            target: folder that files are fetched to.
        """
        self._uri = uri
        self._repository = uri.removeprefix(HUB_SCHEME)
        self._revision = revision
        self._field = field
        self._token = token
        self._target = target
        self._fetched: set[str] = set()

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def commit(self) -> str:
        """The commit that the revision is at now, 40 digits.

        Raises:
            InvalidInput, AccessDenied, TransientError: the hub does not tell it.
        """
        from huggingface_hub import HfApi

        with self._hub_errors():
            return str(HfApi(token=self._token or False).model_info(self._repository, revision=self._revision).sha)

    @cached_property
    def files(self) -> Sequence[FileEntry]:
        return tuple(
            FileEntry(
                path=checked_relative(path),
                bytes=sibling.size or 0,
                sha256=sibling.lfs.sha256 if sibling.lfs else hashlib.sha256(sibling.blob_id.encode()).hexdigest(),
            )
            for path, sibling in sorted(self._siblings.items())
            if SourceKind.MODEL.counts(path)
        )

    @property
    def ignored(self) -> Sequence[str]:
        return sorted(path for path in self._siblings if not SourceKind.MODEL.counts(path))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file list."""
        return file_list_digest(self.files)

    def fetch(self, paths: Sequence[str]) -> Path:
        """A folder with these files, verified by the hub's checksums.

        Raises:
            InvalidInput: a path is not a file of this source.
            TransientError: a file does not match the hub's checksum.
        """
        check_paths(self, SourceKind.MODEL, self._field, self._siblings, paths)
        return self._fetch(paths)

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        # The whole file is needed anyway: prepare copies the model to the store.
        return read_range(self.fetch([path]) / path, start, buffer)

    def read_note(self, path: str) -> bytes:
        """The first bytes of a file; empty if it is too large to be a note."""
        if (self._siblings[path].size or 0) > _MOST_DOWNLOADED:
            return b""
        with (self._fetch([path]) / path).open("rb") as file:
            return file.read(MOST_NOTE_BYTES)

    def _fetch(self, paths: Sequence[str]) -> Path:
        from huggingface_hub import hf_hub_download

        for path in sorted(set(paths) - self._fetched):
            with self._hub_errors():
                fetched = hf_hub_download(
                    self._repository, path, revision=self._revision, local_dir=self._target, token=self._token or False
                )
            self._verify(path, Path(fetched))
            self._fetched.add(path)
        return self._target

    @cached_property
    def _siblings(self) -> dict[str, Any]:
        from huggingface_hub import HfApi

        with self._hub_errors():
            api = HfApi(token=self._token or False)
            info = api.model_info(self._repository, revision=self._revision, files_metadata=True)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or () if not is_hidden(sibling.rfilename)}
        if not siblings:
            raise InvalidInput(f"{self._field}.uri: {self._uri} has no files; name another model")
        return siblings

    def _verify(self, path: str, fetched: Path) -> None:
        sibling = self._siblings[path]
        if sibling.lfs:
            intact = fingerprint(fetched).sha256 == sibling.lfs.sha256
        else:
            intact = _git_blob_id(fetched.read_bytes()) == sibling.blob_id
        if not intact:
            fetched.unlink()
            raise TransientError(
                f"{path} of {self._uri} was damaged in transfer: its checksum is not the hub's; try again"
            )

    @contextmanager
    def _hub_errors(self) -> Iterator[None]:
        from httpx2 import HTTPError  # huggingface_hub's HTTP client
        from huggingface_hub import errors

        where = f"{self._field}: {self._uri} at {self._revision}"
        try:
            yield
        except errors.HFValidationError as error:
            raise InvalidInput(
                f"{self._field}.uri: {self._uri} is not a valid model name of the hub; use hf://organization/name"
            ) from error
        except errors.GatedRepoError as error:
            raise AccessDenied(
                f"{where}: the model is gated; accept its licence at {self._page} with the account of the token, "
                "and add the token to the profile's Secret as HF_TOKEN"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise InvalidInput(f"{where}: there is no such commit; see {self._page}/commits/main") from error
        except errors.HfHubHTTPError as error:
            raise self._translate(error, where) from error
        except (HTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            raise TransientError(f"{where}: cannot reach the hub: {error}") from error

    def _translate(self, error: Any, where: str) -> Exception:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            return AccessDenied(
                f"{where}: the hub answered {status}: the model does not exist, or it is private or needs its licence "
                f"accepted at {self._page}; add a token that can read it to the profile's Secret as HF_TOKEN"
            )
        if status == 404:
            return InvalidInput(f"{where}: there is no such model, or no such file in it; see {self._page}")
        return TransientError(f"{where}: the hub answered {status}: {error}")

    @property
    def _page(self) -> str:
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{self._repository}"


def _git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
