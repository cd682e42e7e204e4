"""Where runs are tracked, and the credentials for it."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgetune_contract.access.tracking import MLFLOW_URI

TOKEN, USERNAME, PASSWORD = "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_URI = re.compile(MLFLOW_URI)


@dataclass(frozen=True)
class TrackingSettings:
    """An MLflow server and how to log in."""

    uri: str
    """Without a slash at the end."""

    experiment: str = ""
    """Name of the experiment; empty: namespace/name of the object."""

    token: str = field(default="", repr=False)
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    answer_seconds: float = 5.0
    """How long an answer may take."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "TrackingSettings | None":
        """EDGETUNE_MLFLOW_URI, EDGETUNE_MLFLOW_EXPERIMENT, and the credentials; None if nothing is tracked.

        The credentials are files of EDGETUNE_TRACKING_CREDENTIALS_DIR or else variables. Both have the names that
        MLflow's own client knows.
        """
        uri = environment.get("EDGETUNE_MLFLOW_URI", "").rstrip("/")
        if not uri:
            return None
        folder = environment.get("EDGETUNE_TRACKING_CREDENTIALS_DIR")

        def secret(name: str) -> str:
            if not folder:
                return environment.get(name, "")
            # The Secret may lack it, or may not exist.
            with suppress(OSError, ValueError):
                return (Path(folder) / name).read_text(encoding="utf-8").strip()
            return ""

        return cls(
            uri=uri,
            experiment=environment.get("EDGETUNE_MLFLOW_EXPERIMENT", ""),
            token=secret(TOKEN),
            username=secret(USERNAME),
            password=secret(PASSWORD),
        )

    @property
    def problem(self) -> str | None:
        """Why nothing can be sent; None if nothing speaks against it."""
        if not _URI.fullmatch(self.uri):
            return "its address is not that of a server: use http:// or https://, and give credentials apart from it"
        if not (self.token.isascii() and self.token.isprintable()):
            return f"{TOKEN} has characters that no token has: copy it again"
        return None

    @property
    def shown_uri(self) -> str:
        """The address without what may be a password in it."""
        return re.sub(r"//[^/]*@", "//…@", re.sub(r"[?#].*", "", self.uri))

    def without_secrets(self, text: str) -> str:
        """A text in which the secrets are replaced, also in the answer of a server that repeats them."""
        for secret in (self.token, self.password):
            text = text.replace(secret, "…") if secret else text
        return text
