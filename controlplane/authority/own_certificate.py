"""The certificate of this control plane: made at its start, and anew at half its life.

Its key is in memory only, unless something needs files: HTTPS loads its certificate from two.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from controlplane.authority.certificates import LEAF_LIFETIME
from controlplane.authority.cluster import Cluster
from limiquantix.rpc.credentials import MachineCertificate, MachineCredentials

LOOK_S: Final = 300.0
"""How often the clock is looked at: not once in days, since it may be set, and machines sleep."""
_JITTER: Final = 0.1

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where certificate and key are written too, best in memory (/run). Each file is replaced whole, one by one."""

    directory: Path

    @property
    def cert_path(self) -> Path:
        """The certificate's, with that of the authority behind it."""
        return self.directory / "certificate.pem"

    @property
    def key_path(self) -> Path:
        """The key's, for this user only."""
        return self.directory / "key.pem"

    def write(self, certificate: MachineCertificate) -> None:
        """Write both; blocks.

        Raises:
            OSError: they cannot be written.
        """
        self.directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        _replace(self.key_path, certificate.key_pem)
        _replace(self.cert_path, certificate.certificate_pem + certificate.authority_pem)


class OwnCertificate:
    """Owns the credentials that ports and channels of this process use.

    Args:
        name: of this process among its like, such as its host's.
        names: host names and IP addresses by which people and programs call it.
        files: are written at once, and with every certificate.
        sleep, jitter: seams for tests; `jitter` returns a number from 0 to 1.

    Raises:
        OSError: files were asked for and cannot be written.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        names: Sequence[str],
        now: Callable[[], datetime],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        files: CertificateFiles | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._files = files
        self._cluster = cluster
        self._identity = cluster.control_plane(name)
        self._names = tuple(names)
        self._now = now
        self._sleep = sleep
        self._jitter = jitter
        self.credentials = MachineCredentials(self._issued())

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            await self._sleep(LOOK_S)
            if self._now() < self._renew_at:
                continue
            try:
                newer = await asyncio.to_thread(self._issued)
            except OSError as error:
                _log.error("own_certificate_not_renewed", name=self._identity.id, error=str(error))
                continue
            self.credentials.replace(newer)
            _log.info("own_certificate_renewed", name=self._identity.id)

    def _issued(self) -> MachineCertificate:
        now, authority = self._now(), self._cluster.authority
        pair = authority.issue(self._identity, now, self._names)
        lifetime = min(LEAF_LIFETIME, authority.ends_at - now)
        issued = MachineCertificate(pair.certificate_pem, pair.key_pem, authority.certificate_pem)
        if self._files is not None:
            self._files.write(issued)
        self._renew_at = now + lifetime * (0.5 - _JITTER * self._jitter())
        return issued


def _replace(path: Path, content: bytes) -> None:
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
