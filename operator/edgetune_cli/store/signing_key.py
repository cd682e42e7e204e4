"""The key of `edgetune run --signing-key`, which a Secret has in a cluster."""

from collections.abc import Mapping
from pathlib import Path

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.store.commands import call_jobs
from edgetune_operator.api.profiles.profile import Profile, Signing

# In a local run, the file replaces it.
_NO_SECRET = Signing(secret_name="this-machine")  # noqa: S106 - names no Secret


def with_signing_key(profiles: Mapping[str, Profile], name: str, key: Path | None) -> Mapping[str, Profile]:
    """The profiles, of which the one that an object names signs if there is a key.

    The key is read before anything runs, so that no training ends at a key that cannot sign.

    Exits with an error if the key cannot sign, or is missing although the profile signs.
    """
    profile = profiles.get(name)
    if key is None:
        if profile is not None and profile.signing is not None:
            fail(
                f"the profile {name} signs what it publishes (`signing`): name the file of the private key with "
                "--signing-key, because a local run reads no Secret",
                ExitStatus.UNUSABLE_INPUT,
            )
        return profiles
    call_jobs(lambda: _check(key))
    return {each: profile.model_copy(update={"signing": _NO_SECRET}) for each, profile in profiles.items()}


def _check(key: Path) -> None:
    from edgetune_jobs.publishing.signing.keys import read_private_key

    read_private_key(key)
