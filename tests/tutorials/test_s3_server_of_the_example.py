"""The S3 server that examples/clusters/s3.yaml starts in a cluster, started here as a process with the same options."""

from pathlib import Path

import pytest
import yaml

from cluster.binaries import binary, version
from edgetune_contract.request import StoreLocation
from edgetune_jobs.store.s3.bucket import S3Bucket
from edgetune_jobs.store.s3.client import Credentials, create_client
from edgetune_jobs.store.store import PreconditionFailed
from support.apiserver import REPOSITORY
from support.server_process import free_port, running

CLUSTERS = REPOSITORY / "examples" / "clusters"


def test_the_s3_server_of_the_example_keeps_conditional_puts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = list(yaml.safe_load_all((CLUSTERS / "s3.yaml").read_text(encoding="utf-8")))
    (container,) = documents[1]["spec"]["template"]["spec"]["containers"]
    keys = {each["name"]: each["value"] for each in container["env"]}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    port = free_port()
    replaced = {f":{container['ports'][0]['containerPort']}": f"127.0.0.1:{port}"}
    for mount in container["volumeMounts"]:
        replaced[mount["mountPath"]] = str(tmp_path / mount["name"])
        (tmp_path / mount["name"]).mkdir()
    arguments = [replaced.get(argument, argument) for argument in container["args"]]
    store = yaml.safe_load((CLUSTERS / "kind.yaml").read_text(encoding="utf-8"))["profiles"]["default"]["store"]
    endpoint = f"http://127.0.0.1:{port}"
    place = StoreLocation(uri=store["uri"], endpoint=endpoint, region=store["region"], path_style=store["pathStyle"])
    credentials = Credentials(keys["ROOT_ACCESS_KEY_ID"], keys["ROOT_SECRET_ACCESS_KEY"])

    with running([str(binary("versitygw")), *arguments], endpoint, tmp_path / "log"):
        client = create_client(place, credentials, 2)
        client.create_bucket(Bucket="models")
        bucket = S3Bucket(client, "models")
        etag = bucket.put("latest.json", b"1", if_none_match=True)
        bucket.put("latest.json", b"2", if_match=etag)
        with pytest.raises(PreconditionFailed):
            bucket.put("latest.json", b"3", if_match=etag)
        with pytest.raises(PreconditionFailed):
            bucket.put("latest.json", b"3", if_none_match=True)

    assert container["image"] == f"versity/versitygw:{version('versitygw')}", "the version that the tests use"
