"""Which base models and data an object may read, by its namespace and its profile.

One key often reads a whole store. Below the address of a store, an object therefore reads only the folder of its own
namespace, whatever its credentials can read. Outside of the stores it reads everything, or what the profile allows.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from edgetune_contract.spec import BUCKET, HUB_NAME, URI_MAX_LENGTH, Parameters
from edgetune_contract.values.text import UNSAFE

_ANYTHING = "*"

# No source has a segment that is empty, . or .., or encoded characters (see spec.py).
_OTHER = rf"[^/*%\s{UNSAFE}]"
_FIRST = rf"[^./*%\s{UNSAFE}]"
_SEGMENT = rf"({_FIRST}{_OTHER}*|\.{_FIRST}{_OTHER}*|\.\.{_OTHER}+)"
_IN_S3 = rf"s3://(\*|{BUCKET}(/{_SEGMENT})*(/\*?)?)"
_ON_THE_HUB = rf"hf://(\*|{HUB_NAME}/(\*|{HUB_NAME}))"
SOURCE_FORMS = "s3://bucket/folder, s3://bucket/folder/*, s3://*, hf://organization/name, hf://organization/* or hf://*"
"""The forms of an allowed source, for messages. Others would never match the URI of a source."""


def _in_a_form(value: Any, check: ValidatorFunctionWrapHandler) -> str:
    try:
        found: str = check(value)
    except ValidationError:
        raise ValueError(f"{value!r} matches no source; write {SOURCE_FORMS}") from None
    return found


AllowedSource = Annotated[
    str,
    Field(max_length=URI_MAX_LENGTH, pattern=rf"^({_IN_S3}|{_ON_THE_HUB})$"),
    WrapValidator(_in_a_form),
]
"""A URI, or the URIs below one: s3://models/llama, s3://models/*, hf://organization/*, hf://*."""


def source_uris(parameters: Parameters) -> Mapping[str, str]:
    """URIs of the base model and the data, by their paths in the object."""
    uris = {"spec.baseModel.uri": parameters.base_model.uri, "spec.dataset.train.uri": parameters.dataset.train.uri}
    if parameters.dataset.eval is not None:
        uris["spec.dataset.eval.uri"] = parameters.dataset.eval.uri
    return uris


def refused_sources(
    parameters: Parameters, namespace: str, stores: Sequence[str], allowed: Sequence[AllowedSource] | None
) -> tuple[str, ...]:
    """Why sources may not be read, each with its path in the object; empty if all may be read.

    Args:
        parameters: of the object.
        namespace: of the object.
        stores: s3:// addresses of the stores, each with one folder for each namespace.
        allowed: what may be read besides the namespace's own folders; None for everything outside of the stores. Only
            an entry below a store's address opens something in that store.
    """
    problems = {
        path: _problem(uri, namespace, [_normal(store) for store in stores], allowed)
        for path, uri in source_uris(parameters).items()
        if not uri.startswith("file://")  # profile.allowFileUris
    }
    return tuple(f"{path}: {problem}" for path, problem in problems.items() if problem)


def _problem(uri: str, namespace: str, stores: Sequence[str], allowed: Sequence[AllowedSource] | None) -> str:
    """Why a URI may not be read; empty if it may."""
    address = _normal(uri)
    within = next((store for store in stores if _is_in(store, address)), None)
    if within is not None:
        return f"{uri} contains {within}/, where the folders of all namespaces are; name a folder outside of it"
    store = max((store for store in stores if _is_in(address, store)), key=len, default=None)
    if store is None and allowed is None:
        return ""
    if store is not None and _is_in(address, f"{store}/{namespace}"):
        return ""
    if any(_is_allowed(address, entry, store) for entry in allowed or ()):
        return ""
    if store is not None:
        return (
            f"{uri} is in the store {store}, of which namespace {namespace} may only read {store}/{namespace}/; copy "
            "it there or outside of the store, or ask the platform team to add it to the profile's sources"
        )
    listed = ", ".join(allowed or ()) or "none"
    return (
        f"{uri} is not a source that the profile allows ({listed}); use one of these, or ask the platform team to add "
        "it to the profile's sources"
    )


def _is_allowed(address: str, entry: AllowedSource, store: str | None) -> bool:
    """Whether an entry of the profile names the address. A wide entry must not open a store by accident."""
    folder = entry.removesuffix(_ANYTHING)
    named = _normal(folder)
    if store is not None and (named == store or not _is_in(named, store)):
        return False
    return address.startswith(folder) if entry.endswith(_ANYTHING) else address == named


def _is_in(address: str, folder: str) -> bool:
    return address == folder or address.startswith(f"{folder}/")


def _normal(uri: str) -> str:
    """The URI as the S3 client reads it, without a / at either end of its key."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}/{key.strip('/')}".rstrip("/") if bucket else uri
