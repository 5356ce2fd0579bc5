"""`limiquantix dev` as a process, driven as a user would: output, HTTP, signals, and what is left behind."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
import httpx
import psutil

from controlplane.cli.credentials import BearerAuth, CredentialFile
from limiquantix.rpc.channel import open_channel
from limiquantix.rpc.identity import CONTROL_PLANE_SERVER_NAME

FoundT = TypeVar("FoundT")

COMMAND = Path(sys.executable).with_name("limiquantix")
START_TIMEOUT_S = 250.0
STOP_TIMEOUT_S = 60.0
_POLL_S = 0.05


class CallRefused(Exception):
    """The API answered with an error; `document` is its JSON."""

    def __init__(self, status: int, document: dict[str, Any]) -> None:
        super().__init__(f"{status}: {document}")
        self.status = status
        self.document = document


def wait_for(look: Callable[[], FoundT | None], what: str, deadline_s: float = 60.0) -> FoundT:
    """Return what `look` finds as soon as it finds something; fails naming `what` when it never does."""
    until_s = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < until_s, f"{what} did not happen within {deadline_s:g} s"
        time.sleep(_POLL_S)


def words_of(process: psutil.Process) -> list[str]:
    """Command line of a process; nothing of one that has ended."""
    try:
        words: list[str] = [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.Error:
        return []
    return words


def processes_of(data_dir: Path) -> list[psutil.Process]:
    """Every process whose command line names the data directory, but zombies."""
    return [process for process in psutil.process_iter() if str(data_dir) in " ".join(words_of(process))]


def leftovers_of(data_dir: Path) -> list[str]:
    """Processes, mounts and sockets that name the data directory."""
    left = [f"process {process.pid} {' '.join(words_of(process))}" for process in processes_of(data_dir)]
    left += [f"mount {line}" for line in Path("/proc/mounts").read_text().splitlines() if str(data_dir) in line]
    left += [f"socket {path}" for path in data_dir.rglob("*") if path.is_socket()]
    return left


class DevCluster:
    """A running `limiquantix dev`; as a context manager it is stopped on the way out."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self._output = data_dir.with_suffix(".out")
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [COMMAND, "dev", "--data-dir", data_dir, "--http-port", "0", "--grpc-port", "0", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment_of(data_dir),
            )

    def __enter__(self) -> Self:
        try:
            self.wait_until_up()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def output(self) -> str:
        """What it printed so far."""
        return self._output.read_text()

    def wait_until_up(self) -> None:
        """Wait for the line that says that it stays."""

        def is_up() -> bool:
            assert self.process.poll() is None, self.output
            return "running until Ctrl-C" in self.output

        wait_for(is_up, "start of limiquantix dev", START_TIMEOUT_S)
        self.http_url = self._match(r"^API +(\S+)")
        self.grpc_address = self._match(r"^gRPC +(\S+)")
        self._http = httpx.Client(
            base_url=self.http_url,
            timeout=60.0,
            trust_env=False,
            verify=ssl.create_default_context(cafile=str(self.data_dir / "ca.pem")),
            auth=BearerAuth(self.http_url, self._credentials),
        )

    @property
    def environment(self) -> dict[str, str]:
        """Where commands find the cluster, and what they are logged in with."""
        return environment_of(self.data_dir) | {"LIMIQUANTIX_SERVER": self.http_url}

    @property
    def _credentials(self) -> CredentialFile:
        return CredentialFile(Path(self.environment["XDG_CONFIG_HOME"]) / "limiquantix" / "credentials.json")

    def channel(self) -> grpc.aio.Channel:
        """Open a channel that calls as commands do, for the quarter of an hour that their token is good."""
        credential = self._credentials.get(self.http_url)
        assert credential is not None
        trust = grpc.ssl_channel_credentials((self.data_dir / "ca.pem").read_bytes())
        who = grpc.access_token_call_credentials(credential.access_token)
        return open_channel(
            self.grpc_address, grpc.composite_channel_credentials(trust, who), CONTROL_PLANE_SERVER_NAME
        )

    def _match(self, pattern: str) -> str:
        match = re.search(pattern, self.output, re.MULTILINE)
        assert match, self.output
        return match[1]

    @property
    def libvirt_uri(self) -> str:
        """The libvirt the first node uses."""
        return self._match(r"^virsh -c '([^']+)'")

    def call(self, method: str, /, **request: Any) -> dict[str, Any]:
        """Call "VMService/GetVM" and the like with JSON.

        Raises:
            CallRefused: the answer is an error.
        """
        answer = self._http.post(f"/limiquantix.compute.v1.{method}", json=request)
        document: dict[str, Any] = answer.json()
        if answer.status_code != httpx.codes.OK:
            raise CallRefused(answer.status_code, document)
        return document

    def vm(self, name: str) -> dict[str, Any] | None:
        """The VM of that name as the API shows it; None if there is none."""
        vms = self.call("VMService/ListVMs").get("vms", [])
        return next((vm for vm in vms if vm["name"] == name), None)

    def state(self, name: str) -> str | None:
        """Power state of a VM as the API shows it; None while the API does not answer, or without such a VM."""
        try:
            vm = self.vm(name)
        except httpx.HTTPError:
            return None
        return None if vm is None else str(vm["status"]["state"])

    def virsh(self, *words: str) -> str:
        """Run virsh on the cluster's libvirt and return what it printed."""
        return subprocess.run(
            ["/usr/bin/virsh", "--quiet", "--connect", self.libvirt_uri, *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.strip()

    def daemon(self, module: str) -> psutil.Process:
        """The process of one daemon: `controlplane` or `nodedaemon`."""
        found = [p for p in processes_of(self.data_dir) if words_of(p)[1:3] == ["-m", module]]
        assert len(found) == 1, found
        return found[0]

    def kill_daemon(self, module: str) -> psutil.Process:
        """SIGKILL one daemon and return what it was."""
        victim = self.daemon(module)
        victim.kill()
        return victim

    def stop(self, number: int = signal.SIGINT) -> int:
        """End it as Ctrl-C would and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)


def environment_of(data_dir: Path) -> dict[str, str]:
    """Ours, with a place for credentials beside the cluster's data."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LIMIQUANTIX_")}
    return kept | {"XDG_CONFIG_HOME": str(data_dir.with_suffix(".config"))}


def run_once(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `limiquantix dev --once` to its end."""
    return subprocess.run(
        [COMMAND, "dev", "--once", "--data-dir", data_dir, "--http-port", "0", "--grpc-port", "0", *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_TIMEOUT_S,
        env=environment_of(data_dir),
    )
