"""The operator's probes as the kubelet asks them."""

import socket
import urllib.error
import urllib.request


def has_ipv6() -> bool:
    """Whether this machine has IPv6 on its loopback interface."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def ask(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, str]:
    """Status and body of a response; status 0 if nothing answers."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""
