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
_OUR_MAC_PREFIX = "02:4c:51"
"""Locally administered, so no vendor's: a bridge that begins with it was made here."""
_USAGE = "usage: leftovers.py --directory PATH [--bridge NAME MAC]\n"


def leftovers_command(directory: Path, bridge: tuple[str, str] | None) -> list[str]:
    """Return the words that remove `directory`, and the bridge (name, own MAC address) if nobody else uses it."""
    words = [sys.executable, "-I", "-S", "-E", os.path.abspath(__file__), "--directory", str(directory)]
    return words if bridge is None else [*words, "--bridge", *bridge]


def bridge_mac(identity: bytes) -> str:
    """Return the MAC address with which the owner of this identity makes a bridge; its beginning marks it as ours."""
    return f"{_OUR_MAC_PREFIX}:{identity[0]:02x}:{identity[1]:02x}:{identity[2]:02x}"


def add_bridge(name: str, mac: str) -> None:
    """Create the bridge `name`, without address or DHCP, known as ours by `mac`; one that exists stays as it is.

    Raises OSError or SubprocessError when it cannot be made.
    """
    if (_NETWORK_DEVICES / name).exists():
        return
    _ip("link", "add", name, "address", mac, "type", "bridge")
    _ip("link", "set", name, "up")


def remove_bridge(name: str, mac: str) -> None:
    """Delete the bridge `name` if one of our daemons made it and none but the owner of `mac` uses it any more.

    Raises OSError or SubprocessError when it cannot be deleted.
    """
    try:
        address = (_NETWORK_DEVICES / name / "address").read_text().strip()
    except OSError:
        return
    if address.startswith(_OUR_MAC_PREFIX) and not _has_other_users(name, mac):
        _ip("link", "delete", name)


def _has_other_users(name: str, mac: str) -> bool:
    """Look for the reaper of another daemon: its command line names the bridge it will look after at its end."""
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        for position, word in enumerate(words[:-2]):
            if word == b"--bridge" and words[position + 1] == name.encode() and words[position + 2] != mac.encode():
                return True
    return False


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
