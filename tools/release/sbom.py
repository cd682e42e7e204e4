"""Software bills of materials: packages as CycloneDX 1.6 in JSON, which scanners of vulnerabilities read."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from release.installed import Package

LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Described:
    """What a bill is about: an image or the wheel."""

    name: str
    version: str
    sha256: str
    is_image: bool
    made: datetime


def write_sbom(described: Described, packages: Iterable[Package], target: Path) -> None:
    """Write the bill of one image or wheel. The same packages give the same bytes.

    Raises:
        ValueError: the document does not fit its schema.
    """
    subject = Component(
        name=described.name,
        version=described.version,
        type=ComponentType.CONTAINER if described.is_image else ComponentType.LIBRARY,
        bom_ref=f"{described.name}@{described.version}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=described.sha256)],
        licenses=[LicenseFactory().make_from_string(LICENCE)],
    )
    # A package may be installed twice, such as pip in two environments.
    components = list({str(each.purl): each for each in map(_component, packages)}.values())
    bill = Bom(
        serial_number=uuid5(NAMESPACE_URL, f"{described.name}@{described.version}#{described.sha256}"),
        components=components,
        metadata=BomMetaData(component=subject, timestamp=described.made),
    )
    bill.register_dependency(subject, components)
    text = JsonV1Dot6(bill).output_as_string(indent=2)
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        raise ValueError(f"the bill of {described.name} does not fit its schema: {wrong}")
    target.write_text(f"{text}\n", encoding="utf-8")


def _component(package: Package) -> Component:
    purl = _purl(package)
    return Component(
        name=package.name,
        version=package.version,
        type=ComponentType.LIBRARY,
        bom_ref=str(purl),
        purl=purl,
        licenses=[LicenseFactory().make_from_string(package.licence)] if package.licence else (),
    )


def _purl(package: Package) -> PackageURL:
    if package.debian is None:
        return PackageURL("pypi", None, package.name, package.version)
    qualifiers = {
        "arch": package.debian.architecture,
        "distro": package.debian.release,
        "upstream": "" if package.debian.source == package.name else package.debian.source,
    }
    given = {key: value for key, value in qualifiers.items() if value}
    return PackageURL("deb", "debian", package.name, package.version, given)
