"""Power controllers of hosts that are networks: cutting a host's power kills everything in there.

Each is a program of its own, in another network than its host, as a controller has a cable and power of its own. What
can be wrong with one can be brought about: that it is dead, hangs, or says yes and does nothing.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.namespaces import run_tool
from tests.support.power_emulators import emulator_bin

FIRST_PORT: Final = 9443
USER: Final = "fencing"
PASSWORD: Final = "a-test-password"
"""Not longer than IPMI allows."""


@dataclass
class PowerFront(ABC):
    """The controller of one host.

    Attributes:
        address: its own, in the network where it is to live.
    """

    hostname: str
    address: str
    port: int
    directory: Path
    process: subprocess.Popen[str] | None = None

    @abstractmethod
    def program(self, given: Sequence[str]) -> Sequence[str]:
        """Make its command line, which ends with what all have in common; blocks."""

    @abstractmethod
    def settings(self) -> dict[str, str | int]:
        """What the file of controllers says of it beyond what it says of all."""

    @property
    def _disobeys(self) -> Path:
        return self.directory / "disobeys"

    def start(self, namespace: str, own_namespace: str) -> None:
        """Run it; `namespace` is its host's. From the main thread only: it ends with the thread that starts it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        given = (namespace, self.address, str(self.port), USER, PASSWORD, str(self._disobeys))
        words = ("setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", own_namespace, *self.program(given))
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "serves\n"

    def kill(self) -> None:
        """Let it die, as it does with a host that both take their power from. Safe to call twice."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def hang(self) -> None:
        """Let it answer nothing from now on; connections are taken."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def disobey(self) -> None:
        """Let it accept commands from now on and do nothing."""
        self._disobeys.touch()

    @property
    def entry(self) -> dict[str, str | int]:
        """What the file of controllers says of it."""
        password = self.directory / "password"
        if not password.exists():
            password.touch(mode=0o600)
            password.write_text(f"{PASSWORD}\n")
        common: dict[str, str | int] = {"host": self.hostname, "username": USER, "password_file": str(password)}
        return common | self.settings()


class RedfishFront(PowerFront):
    """Speaks Redfish over TLS, with a certificate that nobody else trusts."""

    @property
    def _certificate(self) -> Path:
        return self.directory / "cert.pem"

    def program(self, given: Sequence[str]) -> Sequence[str]:
        """Make its command line, and a certificate."""
        key = self.directory / "key.pem"
        run_tool(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", str(key), "-out", str(self._certificate), "-days", "2", "-subj", "/CN=controller"),
            *("-addext", f"subjectAltName=IP:{self.address}"),
        )
        return sys.executable, "-m", "tests.support.redfish_front", str(self._certificate), str(key), *given

    def settings(self) -> dict[str, str | int]:
        """Name protocol, address and who signed its certificate."""
        url = f"https://{self.address}:{self.port}"
        return {"agent": "redfish", "address": url, "ca_path": str(self._certificate)}


class IpmiFront(PowerFront):
    """Speaks IPMI 2.0 over LAN, by the library that virtualbmc is made of."""

    def program(self, given: Sequence[str]) -> Sequence[str]:
        """Make its command line; installs the library, once a machine."""
        return str(emulator_bin() / "python"), "-m", "tests.support.ipmi_front", *given

    def settings(self) -> dict[str, str | int]:
        """Name protocol, address and port."""
        return {"agent": "ipmi", "address": self.address, "port": self.port}
