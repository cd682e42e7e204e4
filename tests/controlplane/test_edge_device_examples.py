"""The manifests of examples/edge-device are accepted by an API server, without an unknown field."""

import pytest
import yaml

from support.apiserver import REPOSITORY, ApiServer


@pytest.mark.parametrize(("example", "resource"), [("daemon-set", "daemonsets"), ("init-container", "deployments")])
def test_an_api_server_accepts_the_manifest(apiserver: ApiServer, example: str, resource: str) -> None:
    manifest = yaml.safe_load((REPOSITORY / f"examples/edge-device/{example}.yaml").read_text(encoding="utf-8"))
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": manifest["metadata"]["namespace"]}}
    apiserver.request("POST", "/api/v1/namespaces", namespace)

    path = f"/apis/apps/v1/namespaces/{manifest['metadata']['namespace']}/{resource}"
    reply = apiserver.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", manifest)

    assert reply.accepted, reply.message
