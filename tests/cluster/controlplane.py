"""The control plane: etcd, kube-apiserver, kube-controller-manager and kube-scheduler as processes in one folder."""

import json
import secrets
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import binaries
from cluster.certificates import KeyPair, issue, make_authority, make_signing_key
from cluster.processes import Daemon

SERVICE_NETWORK = "10.96.0.0/16"
_FIRST_SERVICE = "10.96.0.1"
POD_NETWORK = "10.244.0.0/16"
ADMIN = "admin"
# A node that does not report is lost after the first time, and its Pods are evicted after the second.
NODE_GRACE_SECONDS = 20
EVICTION_SECONDS = 5
# User names to which the API server's built-in roles are bound.
_USERS = {
    ADMIN: ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kube-proxy": ("system:kube-proxy", ""),
    "kubelet": ("system:node:{node}", "system:nodes"),
    "kwok": ("kwok", "system:masters"),
    # The service account of its chart, whose roles it then has.
    "kueue": ("system:serviceaccount:kueue-system:kueue-controller-manager", ""),
}
# Enough for Jobs to complete without a scheduler and without nodes.
_LIGHT_CONTROLLERS = (
    "endpointslice-controller",
    "garbage-collector-controller",
    "job-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "ttl-after-finished-controller",
)
# With the clients' default of 20 or 50 requests per second, tests and benchmarks would measure the rate limit.
_NO_RATE_LIMIT = ("--kube-api-qps=1000", "--kube-api-burst=2000")
KWOK_STAGES = Path(__file__).with_name("kwok-stages.yaml")
# A cold start takes 5 s on two idle cores.
_START_LIMIT_SECONDS = 120
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*"]}, {"level": "Metadata"}],
}


@dataclass(frozen=True)
class Listeners:
    """Address and ports of the control plane."""

    address: str
    """Address of the API server for other machines; it also listens on loopback."""

    api_port: int = 6443
    etcd_port: int = 2379
    etcd_peer_port: int = 2380

    @classmethod
    def on_loopback(cls) -> "Listeners":
        """Free ports of 127.0.0.1."""
        return cls("127.0.0.1", *free_ports(3))


@dataclass(frozen=True)
class ControlPlane:
    """The control plane with its files in `folder`."""

    folder: Path
    listeners: Listeners
    prefix: Sequence[str] = ()
    """Prefix of commands that run in the cluster's network, such as `nsenter --net=…`."""

    node_name: str = "edge-node"

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    @property
    def authority(self) -> Path:
        """Certificate of the authority that signs the cluster's certificates."""
        return self.certificates / "ca.crt"

    @property
    def audit_log(self) -> Path:
        return self.folder / "logs" / "audit.log"

    def kubeconfig(self, user: str = ADMIN) -> Path:
        """Kubeconfig of a component, or of the administrator."""
        return self.folder / ("kubeconfig" if user == ADMIN else f"{user}.kubeconfig")

    def prepare(self) -> None:
        """Write keys, certificates, tokens and kubeconfigs."""
        self.certificates.mkdir(parents=True)
        authority = make_authority(self.certificates, "ca")
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost")
        addresses = dict.fromkeys((self.listeners.address, "127.0.0.1", _FIRST_SERVICE))
        issue(
            authority,
            "apiserver",
            "/CN=kube-apiserver",
            [f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses],
        )
        issue(authority, "kubelet-client", "/O=system:masters/CN=kube-apiserver")
        issue(make_authority(self.certificates, "front-proxy-ca"), "front-proxy", "/CN=front-proxy-client")
        make_signing_key(self.certificates, "service-account")
        rows = []
        for user, (name, group) in _USERS.items():
            token = secrets.token_hex(16)
            rows.append(f'{token},{name.format(node=self.node_name)},{user},"{group}"\n')
            self._write_kubeconfig(user, token)
        tokens = self.folder / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text("".join(rows), encoding="utf-8")
        (self.folder / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY), encoding="utf-8")

    def start_api_server(self) -> None:
        """Start etcd and the API server, and wait until it serves."""
        self._start("etcd", self._etcd_arguments())
        self._start("kube-apiserver", self._api_server_arguments())
        self._daemon("kube-apiserver").wait_until(self.is_ready, _START_LIMIT_SECONDS)

    def start_light_controllers(self) -> None:
        """Start the controllers that Jobs need, without a client rate limit."""
        self._start_controllers([f"--controllers={','.join(_LIGHT_CONTROLLERS)}", *_NO_RATE_LIMIT, "--secure-port=0"])

    def start_controllers(self) -> None:
        """Start all controllers and the scheduler."""
        grace = f"--node-monitor-grace-period={NODE_GRACE_SECONDS}s"
        self._start_controllers(["--allocate-node-cidrs=true", f"--cluster-cidr={POD_NETWORK}", grace])
        self.start_scheduler()

    def start_scheduler(self, arguments: Sequence[str] = ()) -> None:
        """Start the scheduler."""
        kubeconfig = f"--kubeconfig={self.kubeconfig('kube-scheduler')}"
        self._start("kube-scheduler", [kubeconfig, "--leader-elect=false", "--secure-port=0", *arguments])

    def start_kwok(self, stages: Path = KWOK_STAGES) -> None:
        """Start a scheduler, and kwok, which simulates the kubelet of nodes with kwok.x-k8s.io/node=fake.

        Args:
            stages: kwok's Stages, which define how and when nodes and Pods change.
        """
        self.start_scheduler(_NO_RATE_LIMIT)
        self._start(
            "kwok",
            [
                f"--config={stages}",
                "--v=WARN",
                f"--kubeconfig={self.kubeconfig('kwok')}",
                "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            ],
        )

    def stop_controllers(self) -> None:
        """Stop all components that make changes on their own."""
        for name in ("kueue", "kwok", "kube-controller-manager", "kube-scheduler"):
            self._daemon(name).stop(limit_seconds=5)

    def stop_api_server(self) -> None:
        """Stop the API server before its etcd: without etcd, it would hang for a minute."""
        self._daemon("kube-apiserver").stop(limit_seconds=10)
        self._daemon("etcd").stop(limit_seconds=5)

    def is_ready(self) -> bool:
        """Whether the API server serves and has created the namespace default, the last thing that objects need."""
        return self.kubectl("get", "namespace", "default") is not None

    def is_healthy(self) -> bool:
        """Whether the API server has done everything that it does at its start."""
        return self.kubectl("get", "--raw", "/healthz") == "ok"

    def kubectl(self, *arguments: str) -> str | None:
        """Output of kubectl as the administrator; None if it fails."""
        command = [*self.prefix, str(binaries.binary("kubectl")), f"--kubeconfig={self.kubeconfig()}"]
        done = subprocess.run(
            [*command, "--request-timeout=10s", *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout if done.returncode == 0 else None

    def _daemon(self, name: str) -> Daemon:
        return Daemon(self.folder, name)

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        self._daemon(name).start([*self.prefix, binaries.binary(name), *arguments])

    def _start_controllers(self, arguments: Sequence[str]) -> None:
        # They give up after ten seconds, in which the API server has not made its roles on a loaded machine.
        self._daemon("kube-apiserver").wait_until(self.is_healthy, _START_LIMIT_SECONDS)
        self._start(
            "kube-controller-manager",
            [
                f"--kubeconfig={self.kubeconfig('kube-controller-manager')}",
                f"--service-account-private-key-file={self._key_pair('service-account').key}",
                f"--root-ca-file={self.authority}",
                "--use-service-account-credentials=true",
                "--leader-elect=false",
                *arguments,
            ],
        )

    def _key_pair(self, name: str) -> KeyPair:
        return KeyPair(self.certificates / f"{name}.crt", self.certificates / f"{name}.key")

    def _etcd_arguments(self) -> list[str]:
        url = f"http://127.0.0.1:{self.listeners.etcd_port}"
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls=http://127.0.0.1:{self.listeners.etcd_peer_port}",
            # The data does not have to survive a power cut.
            "--unsafe-no-fsync",
        ]

    def _api_server_arguments(self) -> list[str]:
        serving, kubelet, proxy = map(self._key_pair, ("apiserver", "kubelet-client", "front-proxy"))
        on_loopback = self.listeners.address == "127.0.0.1"
        return [
            f"--etcd-servers=http://127.0.0.1:{self.listeners.etcd_port}",
            f"--bind-address={'127.0.0.1' if on_loopback else '0.0.0.0'}",
            f"--advertise-address={self.listeners.address}",
            f"--secure-port={self.listeners.api_port}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.authority}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--default-not-ready-toleration-seconds={EVICTION_SECONDS}",
            f"--default-unreachable-toleration-seconds={EVICTION_SECONDS}",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.certificates / 'service-account.pub'}",
            f"--service-account-signing-key-file={self.certificates / 'service-account.key'}",
            f"--kubelet-client-certificate={kubelet.certificate}",
            f"--kubelet-client-key={kubelet.key}",
            "--kubelet-preferred-address-types=InternalIP",
            # Without a front proxy, an unavailable aggregated API blocks the deletion of every namespace.
            f"--requestheader-client-ca-file={self.certificates / 'front-proxy-ca.crt'}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={proxy.certificate}",
            f"--proxy-client-key-file={proxy.key}",
            f"--audit-policy-file={self.folder / 'audit-policy.json'}",
            f"--audit-log-path={self.audit_log}",
            # One file: the default of 100 MB is full after a few hundred objects.
            "--audit-log-maxsize=8192",
            "--allow-privileged=true",
        ]

    def _write_kubeconfig(self, user: str, token: str) -> None:
        cluster = {
            "server": f"https://{self.listeners.address}:{self.listeners.api_port}",
            "certificate-authority": str(self.authority),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "edgetune", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "edgetune", "context": {"cluster": "edgetune", "user": user}}],
            "current-context": "edgetune",
        }
        path = self.kubeconfig(user)
        path.touch(mode=0o600)
        path.write_text(json.dumps(config), encoding="utf-8")


@contextmanager
def running_control_plane(folder: Path, *, controllers: bool = True, kwok: bool = False) -> Iterator[ControlPlane]:
    """A control plane on free loopback ports, stopped on exit; its logs are kept. See `start_control_plane`."""
    try:
        yield start_control_plane(folder, controllers=controllers, kwok=kwok)
    finally:
        stop_control_plane(folder)


def start_control_plane(folder: Path, *, controllers: bool = True, kwok: bool = False) -> ControlPlane:
    """Start a control plane on free loopback ports, without a node.

    Args:
        folder: folder for its files.
        controllers: whether to start controllers for Jobs, garbage collection, namespaces and service accounts.
        kwok: whether to start a scheduler and kwok, for nodes that tests create.
    """
    plane = ControlPlane(folder, Listeners.on_loopback())
    plane.prepare()
    plane.start_api_server()
    if controllers:
        plane.start_light_controllers()
    if kwok:
        plane.start_kwok()
    return plane


def stop_control_plane(folder: Path) -> None:
    """Stop the running components of a folder's control plane."""
    plane = ControlPlane(folder, Listeners("127.0.0.1"))
    plane.stop_controllers()
    plane.stop_api_server()


def free_ports(count: int) -> list[int]:
    """Unused TCP ports of 127.0.0.1."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
