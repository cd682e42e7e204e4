"""`edgetune policy`: the rights that one namespace's key needs, as a policy for AWS, MinIO and other S3 services."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.output import DataFormat, note, print_data
from edgetune_contract.access.allowed_sources import AllowedSource
from edgetune_contract.values.suggestions import did_you_mean
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.yaml_files import OutOfBounds, read_yaml, syntax_problem

OBJECT_ACTIONS = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload")
"""On the objects of the namespace's own folder."""

# AWS has no condition on the prefix for this action: the key also sees the names of others' unfinished uploads.
UPLOADS_ACTION = "s3:ListBucketMultipartUploads"
LIST_ACTION = "s3:ListBucket"
READ_ACTION = "s3:GetObject"
_ARN = "arn:aws:s3:::"

_NamespaceOption = Annotated[
    str, typer.Option("--namespace", "-n", help="Namespace that the key is for.", show_default=False)
]
_ValuesOption = Annotated[
    Path,
    typer.Option("--profiles", help="YAML file with profiles, such as the chart's values.", show_default=False),
]
_ProfileOption = Annotated[str, typer.Option("--profile", help="Name of the profile.")]


def policy(
    namespace: _NamespaceOption,
    profiles: _ValuesOption,
    profile: _ProfileOption = "default",
    output: Annotated[
        DataFormat, typer.Option("--output", "-o", help="Output format; text is JSON.")
    ] = DataFormat.TEXT,
) -> None:
    """Print the policy for a namespace's own key: its folder of the store, and the sources of the profile.

    Attach it to a user or role of the namespace, and put that user's key into the profile's Secret there.
    """
    chosen = _read_profile(profiles, profile)
    if not chosen.store.uri.startswith("s3://"):
        fail(f"{profiles}: profiles.{profile}.store.uri: {chosen.store.uri} is no bucket", ExitStatus.UNUSABLE_INPUT)
    rights = namespace_policy(chosen, namespace)
    print_data(rights, output, [json.dumps(rights, indent=2)])
    if chosen.sources is None:
        note(
            f"Note: profiles.{profile}.sources is not set: the policy has only the store. Set it to the addresses of "
            "base models and data, such as s3://models/*, to have them in the policy."
        )


def namespace_policy(profile: Profile, namespace: str) -> dict[str, Any]:
    """IAM policy with what stages of a namespace need: its own folder of the store, and the profile's sources."""
    bucket, folder = _split(profile.store.for_namespace(namespace).uri)
    statements = [
        {"Effect": "Allow", "Action": list(OBJECT_ACTIONS), "Resource": f"{_ARN}{bucket}/{folder}/*"},
        # For an object that does not exist, S3 answers 404 only to those who may list its name.
        _listing(bucket, [f"{folder}/*"]),
        {"Effect": "Allow", "Action": UPLOADS_ACTION, "Resource": f"{_ARN}{bucket}"},
        *_reading(profile.sources or ()),
    ]
    return {"Version": "2012-10-17", "Statement": statements}


def _reading(sources: Sequence[AllowedSource]) -> list[dict[str, Any]]:
    """Statements for what may be read; entries of the hub need none."""
    addresses = [_split(source) for source in sources if source.startswith("s3://")]
    if not addresses:
        return []
    objects: list[str] = []
    prefixes: dict[str, list[str]] = {}
    for bucket, key in addresses:
        folder = key.removesuffix("*").rstrip("/")
        if not key.endswith("*") and folder:
            objects.append(f"{_ARN}{bucket}/{folder}")
        objects.append(f"{_ARN}{bucket}/{folder}/*" if folder else f"{_ARN}{bucket}/*")
        prefixes.setdefault(bucket, []).extend([folder, f"{folder}/*"] if folder else ["*"])
    listings = [_listing(bucket, names) for bucket, names in prefixes.items()]
    return [{"Effect": "Allow", "Action": READ_ACTION, "Resource": objects}, *listings]


def _listing(bucket: str, prefixes: Sequence[str]) -> dict[str, Any]:
    statement: dict[str, Any] = {"Effect": "Allow", "Action": LIST_ACTION, "Resource": f"{_ARN}{bucket}"}
    if "*" not in prefixes:
        statement["Condition"] = {"StringLike": {"s3:prefix": list(prefixes)}}
    return statement


def _split(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI; the bucket * means all buckets."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


def _read_profile(path: Path, name: str) -> Profile:
    """A profile of a file that may have other values of the chart; exits with an error if there is none."""
    try:
        documents = read_yaml(path)
        found = documents[0].get("profiles") if len(documents) == 1 and isinstance(documents[0], Mapping) else None
        if not isinstance(found, Mapping) or name not in found:
            meant = did_you_mean(name, found if isinstance(found, Mapping) else ())
            message = f"{path}: there is no profiles.{name}; name another one with --profile{meant}"
            fail(message, ExitStatus.UNUSABLE_INPUT)
        return Profile.model_validate(found[name])
    except OSError as error:
        fail(f"{path}: {error.strerror}", ExitStatus.UNUSABLE_INPUT)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, ("profiles", name, *problem["loc"])))
        fail(f"{path}: {where}: {problem['msg'].removeprefix('Value error, ')}", ExitStatus.UNUSABLE_INPUT)
    except OutOfBounds as error:
        fail(f"{path}: {error}", ExitStatus.UNUSABLE_INPUT)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        fail(f"{path}: {syntax_problem(error)}", ExitStatus.UNUSABLE_INPUT)
