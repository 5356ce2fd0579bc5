"""Emulated power controllers over VMs of a libvirt: Redfish by sushy-tools, IPMI by virtualbmc.

They live in a virtual environment of their own: they bring a web server, a message queue and an IPMI stack that the
product has no use for, and whose versions must not bind its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from tests.support.private_libvirt_host import TEST_CACHE_DIR, descendants, eventually

PACKAGES = ("sushy-tools==2.2.0", "virtualbmc==3.3.0", "bcrypt>=4,<6", "setuptools")
INSTALL_LIMIT_S = 250.0


def emulator_bin() -> Path:
    """Return the directory of the emulators' programs, installed first where they are not yet; once a machine."""
    packages = (*PACKAGES, f"libvirt-python=={version('libvirt-python')}")
    home = TEST_CACHE_DIR / "power-emulators"
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / "power-emulators.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        mark = home / "installed"
        if not mark.exists() or mark.read_text() != "\n".join(packages):
            shutil.rmtree(home, ignore_errors=True)
            _run(sys.executable, "-m", "venv", str(home))
            _run(str(home / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", *packages)
            mark.write_text("\n".join(packages))
    return home / "bin"


def _run(*words: str, text: str = "") -> str:
    done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
    return done.stdout


@asynccontextmanager
async def running(log: Path, *words: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a program while the block lasts; what it prints goes into a file."""
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *words, stdout=output, stderr=output, env=os.environ | environment
        )
    try:
        yield process
    finally:
        # virtualbmc serves each VM in a process of its own, which would outlive it
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.wait()


@asynccontextmanager
async def redfish_emulator(
    directory: Path, uri: str, port: int, username: str, password: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run sushy-tools over all VMs of a libvirt, asking for a password."""
    programs = emulator_bin()
    hashing = "import bcrypt, sys; print(bcrypt.hashpw(sys.stdin.buffer.read(), bcrypt.gensalt(4)).decode())"
    hashed = _run(str(programs / "python"), "-c", hashing, text=password)
    (directory / "htpasswd").write_text(f"{username}:{hashed.strip()}\n")
    settings = {
        "LISTEN_IP": "127.0.0.1",
        "LISTEN_PORT": port,
        "LIBVIRT_URI": uri,
        "STATE_DIR": str(directory),
        "AUTH_FILE": str(directory / "htpasswd"),
    }
    config = directory / "sushy.conf"
    config.write_text("".join(f"SUSHY_EMULATOR_{key} = {value!r}\n" for key, value in settings.items()))
    log = directory / "sushy.log"
    async with running(log, str(programs / "sushy-emulator"), "--config", str(config)) as process:

        async def listens() -> bool | None:
            assert process.returncode is None, log.read_text()
            return await _accepts(port)

        await eventually(listens, "the Redfish emulator")
        yield process


@asynccontextmanager
async def ipmi_emulator(
    directory: Path, uri: str, domain: str, ports: tuple[int, int], username: str, password: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run virtualbmc over one VM. `ports`: of IPMI, and of its own control."""
    programs = emulator_bin()
    (directory / "bmc").mkdir()
    config = directory / "vbmc.conf"
    config.write_text(
        f"[default]\nconfig_dir={directory}/bmc\npid_file={directory}/vbmcd.pid\nserver_port={ports[1]}\n"
        "[ipmi]\nsession_timeout=10\n"
    )
    (directory / "bmc" / domain).mkdir()
    (directory / "bmc" / domain / "config").write_text(
        f"[VirtualBMC]\nusername={username}\npassword={password}\naddress=127.0.0.1\nport={ports[0]}\n"
        f"domain_name={domain}\nlibvirt_uri={uri}\nactive=True\n"
    )
    words = (str(programs / "vbmcd"), "--foreground")
    async with running(directory / "vbmcd.log", *words, VIRTUALBMC_CONFIG=str(config)) as daemon:
        yield daemon


async def _accepts(port: int) -> bool | None:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return None
    writer.close()
    return True
