"""The licence of a base model is found in README.md or in a licence file, and an unknown one is a warning."""

from pathlib import Path

import pytest

from edgetune_jobs.store.sources.licence import UNKNOWN, Licence, find_licence
from edgetune_jobs.store.sources.source import FolderSource, SourceKind

APACHE = "\n                                 Apache License\n                           Version 2.0, January 2004\n"


def licence_of(folder: Path, files: dict[str, str]) -> Licence:
    (folder / "config.json").write_text("{}")
    for name, text in files.items():
        (folder / name).write_text(text)
    return find_licence(FolderSource(folder.as_uri(), "spec.baseModel", SourceKind.MODEL))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": "---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\n"}, Licence("apache-2.0", "README.md")),
        ({"README.md": '---\nlicense: "Llama3.1"\n---\n'}, Licence("llama3.1", "README.md")),
        ({"README.md": "---\nlicense: mit\n---\n", "LICENSE": APACHE}, Licence("mit", "README.md")),
        ({"LICENSE": APACHE}, Licence("apache-2.0", "LICENSE")),
        ({"LICENSE.txt": "Llama 3.2 Community License Agreement"}, Licence("llama3.2", "LICENSE.txt")),
        ({"licence.md": "All rights reserved."}, Licence("other", "licence.md")),
        ({"README.md": "# Model\nlicense: mit\n", "COPYING": "MIT License"}, Licence("mit", "COPYING")),
        ({"README.md": "# A model without front matter\nlicense: mit\n"}, Licence()),
        ({"README.md": "---\nlicense: a b: [c\n---\n"}, Licence()),
        ({}, Licence()),
    ],
)
def test_the_licence_is_found(tmp_path: Path, files: dict[str, str], expected: Licence) -> None:
    assert licence_of(tmp_path, files) == expected


def test_an_unknown_licence_is_a_warning_and_a_fact() -> None:
    (warning,) = Licence().warnings("s3://models/base")

    assert warning == (
        "spec.baseModel: s3://models/base has no licence file (LICENSE, or README.md with license in its front "
        "matter): the model card says that its licence is unknown"
    )
    assert Licence().facts == {"license": UNKNOWN}
    assert Licence("mit", "LICENSE").warnings("s3://models/base") == ()
    assert Licence("mit", "LICENSE").facts == {"license": "mit", "licenseFile": "LICENSE"}


def test_a_link_that_leaves_the_base_is_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text(APACHE)
    base = tmp_path / "base"
    base.mkdir()
    (base / "LICENSE").symlink_to(secret)

    assert licence_of(base, {}) == Licence("other", "LICENSE")
