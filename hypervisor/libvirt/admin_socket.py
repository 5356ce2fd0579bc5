"""libvirt's daemons as their administrator sees them, by `virt-admin`: libvirt-python has no admin interface.

Source: the manual page of virt-admin; VIR_CLIENT_INFO_X509_DISTINGUISHED_NAME of libvirt-admin.h.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from hypervisor.errors import Unavailable

_SOCKETS: Final = (("libvirtd", "libvirt-admin-sock"), ("virtproxyd", "virtproxyd-admin-sock"))
"""The daemons that may listen for other hosts: the one that does everything, and the modular ones' door."""
_NAME_FIELD: Final = "tls_x509_dname"
_DEADLINE_S: Final = 15.0


class AdminTrouble(Exception):
    """A daemon did not do what it was asked; the message names it."""


@dataclass(frozen=True, slots=True)
class AdminSocket:
    """One daemon; `server` is its name, and that of the server inside it which other hosts connect to."""

    program: str
    server: str
    path: Path

    async def reload_tls(self) -> None:
        """Have it read its certificates again.

        Raises:
            AdminTrouble: it did not.
        """
        await self._run("server-update-tls", self.server)

    async def end_connections(self, common_names: frozenset[str]) -> int:
        """End those of hosts that showed certificates with such names; returns how many there were.

        Raises:
            AdminTrouble: some may be left.
        """
        ended_count = 0
        for client_id, transport in _rows(await self._run("client-list", self.server)):
            if transport != "tls":
                continue
            try:
                fields = _fields(await self._run("client-info", self.server, client_id))
            except AdminTrouble:
                if (client_id, transport) in _rows(await self._run("client-list", self.server)):
                    raise
                continue  # it left by itself
            if _NAME_FIELD not in fields:
                raise AdminTrouble(f"{self.server} does not say whose connection {client_id} is")
            if _common_name(fields[_NAME_FIELD]) in common_names:
                await self._run("client-disconnect", self.server, "--client", client_id)
                ended_count += 1
        return ended_count

    async def _run(self, *words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(self.program, "-c", f"{self.server}+unix:///system?socket={quote(str(self.path))}", *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"LC_ALL": "C.UTF-8", "PATH": os.environ.get("PATH", os.defpath)},
        )
        try:
            async with asyncio.timeout(_DEADLINE_S):
                output, complaint = await process.communicate()
        except TimeoutError as error:
            raise AdminTrouble(f"{self.server} does not answer") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise AdminTrouble(f"{self.server}: {complaint.decode(errors='replace').strip()}")
        return output.decode(errors="replace")


def find_admin_sockets(directory: Path) -> list[AdminSocket]:
    """Find the daemons that have their sockets in a directory.

    Raises:
        Unavailable: there is none, or no program to speak with it.
    """
    program = shutil.which("virt-admin")
    if program is None:
        raise Unavailable("libvirt cannot be told of new certificates: install virt-admin (libvirt-clients)")
    found = [(server, directory / name) for server, name in _SOCKETS]
    sockets = [AdminSocket(program, server, path) for server, path in found if path.is_socket()]
    if not sockets:
        raise Unavailable(
            f"libvirt cannot be told of new certificates: it has no admin socket in {directory}; "
            "systemctl enable --now libvirtd-admin.socket"
        )
    return sockets


def _rows(listing: str) -> list[tuple[str, str]]:
    """Read ids and transports from `client-list`, below its heading."""
    rows = (line.split() for line in listing.splitlines())
    return [(row[0], row[1]) for row in rows if len(row) > 1 and row[0].isdecimal()]


def _fields(information: str) -> dict[str, str]:
    """Read `client-info`: a name and a value in each line."""
    pairs = (line.partition(":") for line in information.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _common_name(distinguished_name: str) -> str:
    """Read it from a name as GnuTLS writes it (RFC 4514). Ours have nothing in them that has to be escaped."""
    parts = (part.strip().partition("=") for part in distinguished_name.split(","))
    return next((value for kind, _, value in parts if kind.upper() == "CN"), "")
