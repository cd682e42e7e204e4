"""`python -m release`: builds a release, checks a download, or sets the version; `make release` calls it."""

import argparse
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

from cluster.binaries import binary
from cluster.folders import REPOSITORY
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.signing.keys import read_private_key, read_public_keys
from release import checks, provenance, versions
from release.build import Images, Programs, build_release
from release.errors import Refused
from release.images import base_image, built_images


def main() -> int:
    """Run one command and return its exit code."""
    given = _parse()
    try:
        match given.command:
            case "build":
                _build(given)
            case "verify":
                _verify(given)
            case "version":
                versions.set_version(REPOSITORY, given.version, datetime.now(UTC).date())
    except Refused as refused:
        for reason in refused.reasons:
            print(f"release: {reason}", file=sys.stderr)
        return 1
    except (InvalidInput, RuntimeError, ValueError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def _build(given: argparse.Namespace) -> None:
    source = checks.check(REPOSITORY, given.version, given.signing_key)
    key = None if given.signing_key == checks.UNSIGNED else read_private_key(Path(given.signing_key))
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise Refused(["There is no uv in .venv/bin or on the PATH: run `make .venv/dev`."])
    programs = Programs(binary("helm"), Path(uv))
    with built_images() as found:
        build_release(source, Images(found, base_image()), programs, key, given.target)
    for path in sorted(given.target.iterdir()):
        print(f"{path.stat().st_size:>14,}  {path}")


def _verify(given: argparse.Namespace) -> None:
    keys = read_public_keys(given.key) if given.key else ()
    found = provenance.problems(given.folder, keys)
    if found:
        raise Refused(found)
    print(f"{given.folder}: every file is as it was released" + (f", and signed by {keys[0]}" if keys else ""))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m release", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build a release from the tagged commit that is checked out")
    build.add_argument("version", help="three numbers; the tag is v<version>")
    build.add_argument("--signing-key", default="", help="private key in PEM, or none for a release without signatures")
    build.add_argument("--target", type=Path, default=REPOSITORY / "dist", help="folder of the files (default: dist)")
    verify = commands.add_parser("verify", help="check the files of a release")
    verify.add_argument("folder", type=Path)
    verify.add_argument("--key", type=Path, help="public key of the publisher in PEM")
    version = commands.add_parser("version", help="write a version everywhere, dated today")
    version.add_argument("version")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
