"""Remove what a private libvirt daemon leaves on the machine: its directory of sockets, and its bridge.

The bridge is made here too, so that what it is known by later stands beside it.

The reaper runs this after the last process of the daemon is gone, so it happens after a kill -9 of the program that
started the daemon too. Run as a file by an isolated interpreter; standard library only. Doing it twice is harmless.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_NETWORK_DEVICES = Path("/sys/class/net")
_USAGE = "usage: leftovers.py --directory PATH [--bridge NAME MAC]\n"


def leftovers_command(directory: Path, bridge: tuple[str, str] | None) -> list[str]:
    """Return the words that remove `directory`, and the bridge (name, MAC address) if that address is still its own."""
    words = [sys.executable, "-I", "-S", "-E", os.path.abspath(__file__), "--directory", str(directory)]
    return words if bridge is None else [*words, "--bridge", *bridge]


def add_bridge(name: str, mac: str) -> None:
    """Create the bridge `name`, without address or DHCP, known as ours by `mac`; one that exists stays as it is.

    Raises OSError or SubprocessError when it cannot be made.
    """
    if (_NETWORK_DEVICES / name).exists():
        return
    _ip("link", "add", name, "address", mac, "type", "bridge")
    _ip("link", "set", name, "up")


def remove_bridge(name: str, mac: str) -> None:
    """Delete the bridge `name` if it exists and carries our address; somebody else's stays.

    Raises OSError or SubprocessError when it cannot be deleted.
    """
    try:
        address = (_NETWORK_DEVICES / name / "address").read_text().strip()
    except OSError:
        return
    if address == mac:
        _ip("link", "delete", name)


def _ip(*words: str) -> None:
    program = shutil.which("ip", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        raise FileNotFoundError("the program ip (package iproute2) is not installed")
    done = subprocess.run(
        [program, *words], check=False, timeout=5, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def main(arguments: Sequence[str]) -> int:
    """Remove the leftovers named in `arguments`; 1 when one could not be removed."""
    words = list(arguments)
    if words[:1] != ["--directory"] or len(words) not in (2, 5) or words[2:3] not in ([], ["--bridge"]):
        sys.stderr.write(_USAGE)
        return 2
    failures: list[str] = []
    try:
        shutil.rmtree(words[1])
    except FileNotFoundError:
        pass
    except OSError as error:
        failures.append(str(error))
    if len(words) == 5:
        try:
            remove_bridge(words[3], words[4])
        except (OSError, subprocess.SubprocessError) as error:
            failures.append(str(error))
    for failure in failures:
        sys.stderr.write(f"leftovers: {failure}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
