"""Certificates of libvirt and QEMU on the disk, where both look by themselves.

libvirt's daemon reads its own at its start, and again when it is told to (`virt-admin server-update-tls`); that ends
no connection, and looks at the usual places only, whatever `cert_file` of libvirtd.conf says. What a revoked host has
open is ended by itself, after that: by then it cannot come back. As a client it reads them for
each connection, and QEMU reads its own for each migration. QEMU looks at the list of revoked ones only where it is
called; where it calls, libvirt has looked at the same host before.

A file is replaced whole. A key and its certificate are two files: whoever reads between the two replacements, which
are microseconds apart, is refused by the other side, and its migration fails before anything was moved.

Source: https://libvirt.org/kbase/tlscerts.html; virAdmServerUpdateTlsFiles; virNetTLSContextReloadForServer;
QEMU's "tls-creds-x509".
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from lxml import etree

from hypervisor.errors import HypervisorError, Unavailable
from hypervisor.libvirt.admin_socket import AdminSocket, AdminTrouble, find_admin_sockets
from hypervisor.libvirt.connection import LibvirtConnection
from hypervisor.migration import PeerCertificate, PeerCertificates, RevokedPeer

DEFAULT_PKI_PATH: Final = Path("/etc/pki")
_SOCKET_DIR: Final = Path("/run/libvirt")
_MARK: Final = b"# Written by limiquantix-node; changes are lost.\n"
"""Before the first line of PEM, where its readers look at nothing."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _File:
    """One to be written; `is_secret` for its reader only, which is QEMU's user if `is_qemus`."""

    path: Path
    content: bytes
    is_secret: bool = False
    is_qemus: bool = False


class LibvirtPeerCertificates(PeerCertificates):
    """See `PeerCertificates`.

    Args:
        uri: of this host's libvirt.
        pki_path: what libvirt sees as /etc/pki.
    """

    def __init__(self, connection: LibvirtConnection, uri: str, pki_path: Path) -> None:
        self._connection = connection
        self._uri = uri
        self._pki_path = pki_path
        self._obstacle = ""
        self._ended: dict[AdminSocket, frozenset[RevokedPeer]] = {}
        """Whose connections were ended; those that came back since have newer certificates."""

    def find_obstacle(self) -> str:
        """Say what keeps other hosts from reaching this one, and it them; "" if nothing is known to. Blocks."""
        if self._obstacle:
            return self._obstacle
        return missing_below(self._pki_path)

    async def install(self, certificate: PeerCertificate) -> None:
        """See `PeerCertificates`."""
        try:
            owner = await self._connection.run(lambda connection: qemu_owner(connection.getCapabilities()))
            await asyncio.to_thread(write, self._pki_path, certificate, owner)
            await self._apply(frozenset(certificate.revoked))
        except OSError as error:
            self._obstacle = f"certificates for moving VMs cannot be written: {error}"
            raise Unavailable(self._obstacle) from error
        except HypervisorError as error:
            self._obstacle = str(error)
            raise
        self._obstacle = ""

    async def _apply(self, revoked: frozenset[RevokedPeer]) -> None:
        """Have each daemon that listens for other hosts read its files again, and then end what it let in before."""
        troubles = []
        sockets = find_admin_sockets(_socket_dir(self._uri))
        for socket in sockets:
            try:
                await socket.reload_tls()
            except AdminTrouble as trouble:
                troubles.append(str(trouble))
                continue
            await self._end_connections(socket, revoked - self._ended.get(socket, frozenset()))
            self._ended[socket] = revoked
        if len(troubles) == len(sockets):
            raise Unavailable(
                f"libvirt does not take its new certificates: {'; '.join(troubles)}; if it does not listen for other "
                "hosts yet, start libvirtd-tls.socket before libvirtd"
            )

    async def _end_connections(self, socket: AdminSocket, revoked: frozenset[RevokedPeer]) -> None:
        if not revoked:
            return
        try:
            count = await socket.end_connections(frozenset(each.common_name for each in revoked))
        except AdminTrouble as trouble:
            raise Unavailable(f"libvirt does not end connections of revoked hosts: {trouble}") from trouble
        _log.info("connections of revoked hosts were ended", extra={"server": socket.server, "count": count})


def write(pki_path: Path, certificate: PeerCertificate, owner: tuple[int, int] | None) -> None:
    """Write all files that libvirt and QEMU look for; those that are as they should be are left. Blocks.

    Args:
        owner: user and group that QEMU runs as; None for this one.

    Raises:
        Unavailable: there are files of somebody else's.
        OSError: they cannot be written.
    """
    authority = pki_path / "CA" / "cacert.pem"
    if authority.exists() and not authority.read_bytes().startswith(_MARK):
        raise Unavailable(
            f"{authority} was not made by this daemon, and is left alone: move the files in {pki_path}/CA, /libvirt "
            "and /qemu away, or set migration.pki_path to null to go on with them"
        )
    for directory, mode in (("CA", 0o755), ("libvirt", 0o755), ("libvirt/private", 0o700), ("qemu", 0o755)):
        (pki_path / directory).mkdir(mode=mode, parents=True, exist_ok=True)
    # The key goes right before the certificates, see above.
    for file in _files(pki_path, certificate):
        _replace(file, owner if file.is_qemus else None)


def qemu_owner(capabilities: str) -> tuple[int, int] | None:
    """Read from libvirt's capabilities which user and group QEMU runs as; None if they do not say."""
    for model in etree.fromstring(capabilities.encode()).iterfind("host/secmodel"):
        label = model.findtext("baselabel") or ""
        user, _, group = label.removeprefix("+").partition(":+")
        if model.findtext("model") == "dac" and user.isdecimal() and group.isdecimal():
            return int(user), int(group)
    return None


def _files(pki_path: Path, held: PeerCertificate) -> Sequence[_File]:
    ca, libvirt, qemu = pki_path / "CA", pki_path / "libvirt", pki_path / "qemu"
    return (
        _File(ca / "cacert.pem", held.authority_pem),
        _File(ca / "cacrl.pem", held.revocation_list_pem),
        _File(qemu / "ca-cert.pem", held.authority_pem),
        _File(qemu / "ca-crl.pem", held.revocation_list_pem),
        _File(libvirt / "private" / "serverkey.pem", held.key_pem, is_secret=True),
        _File(libvirt / "servercert.pem", held.certificate_pem),
        _File(libvirt / "private" / "clientkey.pem", held.key_pem, is_secret=True),
        _File(libvirt / "clientcert.pem", held.certificate_pem),
        _File(qemu / "server-key.pem", held.key_pem, is_secret=True, is_qemus=True),
        _File(qemu / "server-cert.pem", held.certificate_pem),
        _File(qemu / "client-key.pem", held.key_pem, is_secret=True, is_qemus=True),
        _File(qemu / "client-cert.pem", held.certificate_pem),
    )


def missing_below(pki_path: Path = DEFAULT_PKI_PATH) -> str:
    """Say which files libvirt lacks to reach other hosts; "" if it has all, whoever made them. Blocks."""
    libvirt = pki_path / "libvirt"
    needed = (pki_path / "CA" / "cacert.pem", libvirt / "clientcert.pem", libvirt / "private" / "clientkey.pem")
    missing = [str(file) for file in needed if not file.is_file()]
    return f"certificates for moving VMs are not there: {', '.join(missing)}" if missing else ""


def _replace(file: _File, owner: tuple[int, int] | None) -> None:
    content, mode = _MARK + file.content, 0o600 if file.is_secret else 0o644
    user, group = owner or (os.geteuid(), os.getegid())
    if _is_so(file.path, content, mode, user):
        return
    scratch = file.path.with_name(f".{file.path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fchown(descriptor, user, group)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        scratch.replace(file.path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _is_so(path: Path, content: bytes, mode: int, user: int) -> bool:
    try:
        status = path.lstat()
        return (status.st_mode & 0o7777, status.st_uid) == (mode, user) and path.read_bytes() == content
    except FileNotFoundError:
        return False


def _socket_dir(uri: str) -> Path:
    """Say where the sockets of the daemon are that a URI of this host leads to."""
    sockets = parse_qs(urlsplit(uri).query).get("socket")
    return Path(sockets[0]).parent if sockets else _SOCKET_DIR
