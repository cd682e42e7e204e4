"""The tracker of `edgetune run`: its option, the profile, or the variables of MLflow's own client."""

from collections.abc import Mapping

from pydantic import ValidationError

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.output import SafeConsole
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.profiles.tracking import Mlflow, Tracking

URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
_NO_SERVER = "is not the address of a server: use http:// or https://, without user and password"


def with_tracking(
    profiles: Mapping[str, Profile], name: str, uri: str | None, environment: Mapping[str, str]
) -> Mapping[str, Profile]:
    """The profiles, of which the one that an object names tracks to a server if there is one.

    Args:
        profiles: by name.
        name: of the profile that the object names.
        uri: the option; None without one.
        environment: of this process. Its variables count if neither option nor profile names a server.

    Exits with an error if the option is not the address of a server. A variable that is not is only reported: it may
    be there for another program.
    """
    profile = profiles.get(name)
    if uri is None and profile is not None and profile.tracking is not None:
        return profiles
    wanted = environment.get(URI) if uri is None else uri
    if not wanted:
        return profiles
    try:
        mlflow = Mlflow(uri=wanted, experiment=environment.get(EXPERIMENT) or None)
    except ValidationError as error:
        is_uri = any("uri" in each["loc"] for each in error.errors())
        problem = f"{URI if uri is None else '--mlflow'} {_NO_SERVER}" if is_uri else f"{EXPERIMENT} is no usable name"
        if uri is not None:
            fail(problem, ExitStatus.UNUSABLE_INPUT)
        SafeConsole(stderr=True).print(f"The run is not tracked: {problem}", highlight=False)
        return profiles
    tracking = Tracking(mlflow=mlflow)
    return {each: profile.model_copy(update={"tracking": tracking}) for each, profile in profiles.items()}
