"""How tests are spread over workers: whole files, and all that share the control plane on one of them."""

from xdist.scheduler import LoadScopeScheduling

_CONTROL_PLANE = "tests/controlplane/"


class FileScheduling(LoadScopeScheduling):
    """Gives a worker one file after the other, in the order of `testpaths`.

    The fixtures of a file are so made once, and so is the control plane, though tests of several files use it. Those
    tests mostly wait: they are at the front of `testpaths`, and the other workers compute beside them.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return _CONTROL_PLANE if file.startswith(_CONTROL_PLANE) else file
