"""A device's folder and what is pulled into it, for tests of `edgetune pull`."""

import json
from collections.abc import Sequence
from pathlib import Path

from typer.testing import CliRunner

from edgetune_cli.__main__ import app
from edgetune_contract.digest import pointer_key
from edgetune_contract.request import FileEntry
from edgetune_contract.version import VersionDocument
from edgetune_jobs.store.files import file_list_digest, fingerprint
from support.published import MODEL, PublishedModel
from support.versitygw import S3Server

WEIGHTS = "model.safetensors"


def pull(*arguments: object) -> str:
    """What a successful pull prints."""
    done = CliRunner().invoke(app, ["pull", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: object) -> str:
    """What a pull that fails prints."""
    done = CliRunner().invoke(app, ["pull", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 2, done.output
    return done.output


def address(model: PublishedModel) -> str:
    """Address of a model's pointer."""
    return f"{model.store.uri}/{pointer_key(model.name)}"


def is_version(device: Path, document: VersionDocument, link: str = "current") -> bool:
    """Whether a link of the device leads to exactly the files of a version."""
    folder = device / link
    found = {path.name: fingerprint(path).sha256 for path in folder.iterdir()}
    return found == {each.path: each.sha256 for each in document.edge.all_files}


def publish_and_pull(model: PublishedModel, device: Path) -> VersionDocument:
    """Publish another version, and pull it."""
    document = model.publish()
    pull(address(model), device)
    return document


def point_to(document: VersionDocument, files: Sequence[FileEntry], tmp_path: Path) -> None:
    """Let the pointer name a version with these files."""
    artifact = document.edge.artifact.model_copy(update={"sha256": file_list_digest(files)})
    edge = document.edge.model_copy(update={"files": tuple(files), "artifact": artifact})
    pointer = tmp_path / "store" / pointer_key(MODEL)
    pointer.write_text(document.model_copy(update={"edge": edge}).model_dump_json(exclude_none=True))


def allow_everybody_to_read(server: S3Server) -> None:
    """Let requests without credentials read the server's bucket."""
    statement = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{server.bucket}", f"arn:aws:s3:::{server.bucket}/*"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    server.client().put_bucket_policy(Bucket=server.bucket, Policy=policy)
