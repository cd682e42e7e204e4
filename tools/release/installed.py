"""What is installed: the Python and Debian packages of an image, and those that the wheel brings with it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release import oci

_DPKG = "var/lib/dpkg/status"
# Images without a package manager have one file for each package.
_DPKG_FOLDER = "var/lib/dpkg/status.d/"
_OS_RELEASE = ("etc/os-release", "usr/lib/os-release")
_DIST_INFO = re.compile(r"(?:.*/)?(?:site|dist)-packages/[^/]+\.dist-info/METADATA")
_UNKNOWN_LICENCE = ("UNKNOWN", "")
# Some packages have the whole text of their licence in this field.
_LONGEST_LICENCE = 100


@dataclass(frozen=True, order=True)
class Package:
    """An installed package."""

    name: str
    version: str
    licence: str = ""
    """SPDX expression, or the words of the package itself; empty if it does not say."""

    debian: "Debian | None" = None
    """Only of Debian packages."""


@dataclass(frozen=True, order=True)
class Debian:
    """What only Debian packages have."""

    architecture: str
    source: str
    """The source package, which security advisories name."""

    release: str
    """Such as debian-12."""


def packages_of_image(image: oci.Image) -> tuple[Package, ...]:
    """Python and Debian packages of an image, sorted by name."""
    files = oci.read_files(image, _is_wanted)
    system = next((files[path] for path in _OS_RELEASE if path in files), b"")
    found = {_python_package(data) for path, data in files.items() if _DIST_INFO.fullmatch(path)}
    for path, data in files.items():
        if path == _DPKG or path.startswith(_DPKG_FOLDER):
            found |= set(_debian_packages(data, _release(system)))
    return tuple(sorted(found, key=lambda package: (package.name, package.version)))


def packages_of_wheel(requirements: Iterable[str], pins: Mapping[str, str]) -> tuple[Package, ...]:
    """Python packages that a wheel brings with all its extras, in the versions that it was tested with.

    Args:
        requirements: of the wheel, as in its metadata; those of the extra `dev` are left out.
        pins: versions by canonical name. A package that is not pinned is for another platform.
    """
    waiting = [each for each in map(Requirement, requirements) if "dev" not in _extras_of(each)]
    found: dict[str, Package] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if name not in pins or (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            described = metadata.metadata(name)
        except metadata.PackageNotFoundError:
            # llama-cpp-python is not in this environment, so that its requirements are not known.
            found[name] = Package(name, pins[name])
            continue
        found[name] = Package(name, pins[name], _licence(described))
        for text in metadata.requires(name) or ():
            each = Requirement(text)
            if any(each.marker is None or each.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(each)
    return tuple(sorted(found.values()))


def requirements_of_wheel(wheel_metadata: bytes) -> tuple[str, ...]:
    """Requirements in the METADATA of a wheel."""
    return tuple(BytesHeaderParser().parsebytes(wheel_metadata).get_all("Requires-Dist", ()))


def _extras_of(requirement: Requirement) -> set[str]:
    return set(re.findall(r'extra == [\'"]([^\'"]+)', str(requirement.marker or "")))


def _is_wanted(path: str) -> bool:
    return path in (_DPKG, *_OS_RELEASE) or path.startswith(_DPKG_FOLDER) or bool(_DIST_INFO.fullmatch(path))


def _python_package(data: bytes) -> Package:
    described = BytesHeaderParser().parsebytes(data)
    return Package(canonicalize_name(described["Name"]), described["Version"], _licence(described))


def _licence(described: "Message | metadata.PackageMetadata") -> str:
    """The licence of a Python package: an expression, else the old field, else its classifiers."""
    for field in ("License-Expression", "License"):
        licence = str((field in described and described[field]) or "").strip()
        if licence not in _UNKNOWN_LICENCE and "\n" not in licence and len(licence) <= _LONGEST_LICENCE:
            return licence
    classifiers = [str(each) for each in described.get_all("Classifier") or ()]
    words = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License :: ")]
    return " and ".join(word for word in words if word != "OSI Approved")


def _debian_packages(data: bytes, release: str) -> Iterator[Package]:
    for paragraph in data.split(b"\n\n"):
        fields = BytesHeaderParser().parsebytes(paragraph.lstrip(b"\n"))
        # Files of single packages have no status.
        if fields["Package"] and fields.get("Status", "install ok installed").endswith(" installed"):
            source = fields.get("Source", fields["Package"]).split()[0]
            yield Package(fields["Package"], fields["Version"], "", Debian(fields["Architecture"], source, release))


def _release(system: bytes) -> str:
    values = dict(line.partition("=")[::2] for line in system.decode(errors="replace").splitlines())
    return "-".join(values[key].strip('"') for key in ("ID", "VERSION_ID") if key in values)
