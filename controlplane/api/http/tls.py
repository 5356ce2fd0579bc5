"""TLS of the HTTP listener: a certificate that can be replaced while connections go on."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0
"""How soon a certificate that was renewed is used; the old one is good for hours or days then."""


class CertificateUnusable(Exception):
    """The files are no certificate with its key; the message names them."""


class ServerTls:
    """The certificate and key in two PEM files, read anew when they change.

    TLS 1.2 is the oldest version that is spoken, with forward secrecy and authenticated encryption only. Connections
    keep the certificate that they began with.
    """

    def __init__(self, cert_path: Path, key_path: Path) -> None:
        """Read the files.

        Raises:
            CertificateUnusable: they are missing, or do not belong together.
        """
        self._paths = (cert_path, key_path)
        self._seen = self._facts()
        self.context = self._new_context()
        """What the listener encrypts with; stays the same object."""

    async def follow(self) -> None:
        """Look for new files until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> bool:
        """Take the files as they are now, if they changed and are sound; else go on with what there is. Blocks.

        Two files cannot be replaced at once, so a pair that does not fit is expected for a moment.
        """
        facts = self._facts()
        if facts == self._seen:
            return False
        try:
            self._new_context()  # tried on another one: loading half of a pair would spoil the one in use
            self.context.load_cert_chain(*self._paths)
        except CertificateUnusable as error:
            _log.warning("certificate not renewed, the old one stays in use: %s", error)
            return False
        self._seen = facts
        _log.info("certificate renewed from %s", self._paths[0])
        return True

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(*self._paths)
        except (OSError, ssl.SSLError) as error:
            raise CertificateUnusable(f"{self._paths[0]} and {self._paths[1]}: {error}") from error
        return context

    def _facts(self) -> tuple[object, ...]:
        """What tells a file that was replaced or rewritten; a file that is missing differs from any."""
        facts: list[object] = []
        for path in self._paths:
            try:
                status = path.stat()
            except OSError:
                facts.append(None)
            else:
                facts.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(facts)
