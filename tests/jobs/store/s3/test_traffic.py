"""Counted bytes of an S3 client's requests."""

from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from edgetune_contract.request import StoreLocation
from edgetune_jobs.store.s3.client import Credentials, create_client
from edgetune_jobs.store.s3.traffic import Traffic


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_is_sent_is_counted_with_and_without_tls(scheme: str) -> None:
    """botocore sends a body over TLS in chunks, without Content-Length. The answer is given before anything is sent."""
    location = StoreLocation(uri="s3://bucket", endpoint=f"{scheme}://s3.example.internal", region="us-east-1")
    client, traffic = create_client(location, Credentials("key", "secret")), Traffic()
    traffic.count(client)

    def answer(request: Any, **_: object) -> AWSResponse:
        response = AWSResponse(request.url, 200, {}, None)
        response._content = b""
        return response

    client.meta.events.register_last("before-send.s3", answer)
    client.put_object(Bucket="bucket", Key="key", Body=b"x" * 1000)
    client.upload_part(Bucket="bucket", Key="key", UploadId="1", PartNumber=1, Body=b"x" * 1000)

    assert traffic.sent == 2000
