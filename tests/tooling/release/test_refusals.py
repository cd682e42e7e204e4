"""`make release` refuses what would not be the release of a tagged commit, and says what to do."""

from datetime import date
from pathlib import Path

import pytest

from release import checks, versions
from release.errors import Refused
from support.release import COMMITTED_AT, VERSION, commit, git, make_repository
from support.signing import make_key


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return make_repository(tmp_path / "repository")


def refusal(repository: Path, version: str = VERSION, key: str = checks.UNSIGNED) -> str:
    with pytest.raises(Refused) as refused:
        checks.check(repository, version, key)
    return str(refused.value)


def test_a_tagged_commit_with_one_version_everywhere_is_released(repository: Path) -> None:
    source = checks.check(repository, VERSION, checks.UNSIGNED)

    assert source.commit == git(repository, "rev-parse", "HEAD").strip()
    assert (source.tag, source.committed_at) == (f"v{VERSION}", COMMITTED_AT)


@pytest.mark.parametrize("version", ["", "v0.2.0", "0.2", "0.2.0rc1", "0.02.0"])
def test_a_version_is_three_numbers(repository: Path, version: str) -> None:
    what = f"VERSION is {version!r}" if version else "VERSION is not set"

    assert refusal(repository, version) == (
        f"{what}: give three numbers, as in `make release VERSION=0.2.0 SIGNING_KEY=release.pem`."
    )


def test_changed_and_new_files_are_refused(repository: Path) -> None:
    with (repository / "README.md").open("a") as file:
        file.write("changed\n")
    (repository / "new.txt").write_text("new")

    assert refusal(repository) == (
        "The working tree is not clean: commit or stash README.md, new.txt, or release from a fresh clone of the tag."
    )


def test_a_missing_tag_is_refused(repository: Path) -> None:
    git(repository, "tag", "--delete", f"v{VERSION}")

    assert refusal(repository) == (
        "There is no tag v7.8.9: create it with `git tag -a v7.8.9 -m 'Edgetune 7.8.9'` once `.ci/run` passes."
    )


def test_a_tag_of_another_commit_is_refused(repository: Path) -> None:
    tagged = git(repository, "rev-parse", "HEAD").strip()
    (repository / "new.txt").write_text("new")
    commit(repository, "After the release")
    head = git(repository, "rev-parse", "HEAD").strip()

    assert refusal(repository) == (
        f"The tag v7.8.9 is at {tagged[:12]}, and HEAD is at {head[:12]}: check it out with `git checkout v7.8.9`."
    )


def test_an_annotated_tag_is_that_of_its_commit(repository: Path) -> None:
    git(repository, "tag", "--delete", f"v{VERSION}")
    author = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
    git(repository, *author, "tag", "--annotate", "--message", "Edgetune", f"v{VERSION}")

    assert checks.check(repository, VERSION, checks.UNSIGNED).version == VERSION


@pytest.mark.parametrize("name", versions.PLACES)
def test_each_place_with_another_version_is_refused(repository: Path, name: str) -> None:
    versions.PLACES[name].write(repository, "1.2.3")
    commit(repository, "Another version")
    git(repository, "tag", "--force", f"v{VERSION}")

    assert refusal(repository) == (
        f"The version in {name} is 1.2.3 instead of 7.8.9: run `make version VERSION=7.8.9`, commit, and tag that "
        "commit."
    )


@pytest.mark.parametrize("heading", ["## [Unreleased]", "## [7.8.9]", "## [7.8.9] - 2026-11-05\n\n## [7.8.8]"])
def test_a_changelog_without_dated_text_of_the_version_is_refused(repository: Path, heading: str) -> None:
    (repository / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n\n- Something.\n")
    commit(repository, "Another changelog")
    git(repository, "tag", "--force", f"v{VERSION}")

    assert refusal(repository) == (
        "CHANGELOG.md has no section `## [7.8.9] - YYYY-MM-DD` with text: run `make version VERSION=7.8.9`, commit, "
        "and tag that commit."
    )


def test_a_release_without_signatures_must_be_asked_for(repository: Path) -> None:
    assert refusal(repository, key="") == (
        "SIGNING_KEY is not set: give the path of the private key (docs/releases.md says how to make one), or "
        "SIGNING_KEY=none for a release without signatures."
    )


def test_a_key_that_cannot_sign_is_refused(repository: Path, tmp_path: Path) -> None:
    assert refusal(repository, key=str(make_key(tmp_path).public)).startswith(
        "SIGNING_KEY cannot sign: the signing key"
    )
    assert refusal(repository, key="missing.pem") == (
        "SIGNING_KEY cannot sign: cannot read the key missing.pem: No such file or directory."
    )


def test_all_reasons_are_given_at_once(repository: Path) -> None:
    assert len(refusal(repository, "1.0.0", "").splitlines()) == 1 + len(versions.PLACES) + 1 + 1


def test_a_new_version_is_written_everywhere_and_dates_what_was_unreleased(repository: Path) -> None:
    changelog = repository / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("## [Unreleased]\n", "## [Unreleased]\n\n- New.\n"))

    versions.set_version(repository, "8.0.0", date(2027, 1, 2))

    assert {place.read(repository) for place in versions.PLACES.values()} == {"8.0.0"}
    assert changelog.read_text().startswith("# Changelog\n\n## [Unreleased]\n\n## [8.0.0] - 2027-01-02\n\n- New.\n")
    assert versions.notes(changelog.read_text(), "8.0.0") == "- New."
    with pytest.raises(ValueError, match=r"has a section of 8\.0\.0 already"):
        versions.set_version(repository, "8.0.0", date(2027, 1, 2))
    with pytest.raises(ValueError, match="has nothing under"):
        versions.set_version(repository, "8.0.1", date(2027, 1, 2))
