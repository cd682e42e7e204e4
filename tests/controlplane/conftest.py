"""One API server for all tests of this folder."""

from collections.abc import Iterator

import pytest

from edgetune_operator.crd import custom_resource_definition
from support.apiserver import BINARIES, BINARIES_VARIABLE, ApiServer, binaries_are_there, running_apiserver


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A running API server that serves LoraFineTunes."""
    if not binaries_are_there():
        pytest.skip(f"no {' and '.join(BINARIES)} in ${BINARIES_VARIABLE} or the cache: the API server is not asked")
    with running_apiserver(tmp_path_factory.mktemp("apiserver")) as server:
        server.install_crd(custom_resource_definition())
        yield server
