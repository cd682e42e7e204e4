"""The environment of child processes that read what others wrote, without credentials: a parser may have holes."""

import os
import re

_CREDENTIAL = re.compile(r"^AWS_|(^|_)(TOKEN|SECRET|PASSWORD|CREDENTIALS?|API_?KEY|ACCESS_KEY)(_|$)", re.IGNORECASE)


def environment_without_credentials() -> dict[str, str]:
    """The environment variables of this process whose names are not those of credentials."""
    return {name: value for name, value in os.environ.items() if not _CREDENTIAL.search(name)}
