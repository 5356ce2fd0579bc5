"""Who commands the development cluster: an administrator of its own, with a password that nobody sees.

The commands of whoever started it are logged in as that user while it runs.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_urlsafe
from typing import Final

from cryptography import x509

from controlplane.cli.credentials import BearerAuth, Credential, CredentialFile
from controlplane.cli.dev.api import Api

ADMIN: Final = "dev"
_GOOD_FOR: Final = timedelta(days=1)
"""A certificate that ends sooner is not waited for to be renewed: the host joins again."""


class AccessFailed(Exception):
    """The cluster's administrator cannot be had, or a host did not join; the text has what was said."""


@dataclass(frozen=True, slots=True)
class Access:
    """How the cluster is called, and by whom.

    Attributes:
        plane: the control plane's command with its configuration.
        authority_path: where the cluster's authority is written, for programs that call it.
        files: where the tokens are kept: one for this program, and that of the commands of whoever started it.
    """

    plane: Sequence[str]
    authority_path: Path
    files: tuple[CredentialFile, ...]

    async def open(self) -> tuple[ssl.SSLContext, str]:
        """Write down the cluster's authority, and give the administrator a new password.

        Returns:
            Whom to believe, and the password.

        Raises:
            AccessFailed: a control plane did not start on the database yet.
        """
        password = token_urlsafe(32)
        authority, _ = await asyncio.gather(_run([*self.plane, "authority"]), self._set_password(password))
        await asyncio.to_thread(self.authority_path.write_text, authority)
        return ssl.create_default_context(cadata=authority), password

    async def _set_password(self, password: str) -> None:
        ways = ("reset", "create") if await asyncio.to_thread(self.authority_path.exists) else ("create", "reset")
        try:
            await _run([*self.plane, "admin", ways[0], ADMIN], password)
        except AccessFailed:
            await _run([*self.plane, "admin", ways[1], ADMIN], password)

    async def log_in(self, api: Api, server: str, password: str) -> None:
        """Log in: this program, and the commands of whoever started it."""
        authority = await asyncio.to_thread(self.authority_path.read_text)
        for file in self.files:
            tokens = await api.call("AuthService", "Login", name=ADMIN, password=password)
            await asyncio.to_thread(file.keep, server, Credential.of_answer(tokens), authority)

    async def log_out(self, server: str) -> None:
        """Forget the tokens, which are good for nothing once the cluster has ended."""
        for file in self.files:
            await asyncio.to_thread(file.forget, server)

    def auth(self, server: str) -> BearerAuth:
        """Add what says who calls, to requests of this program."""
        return BearerAuth(server, self.files[0])

    async def join(self, api: Api, daemon: Sequence[str], data_dir: Path, hostname: str) -> None:
        """Have a host join the cluster, unless it did and its certificate is good for a while."""
        authority = await asyncio.to_thread(self.authority_path.read_text)
        if await asyncio.to_thread(_is_member, data_dir / "identity" / "identity.json", authority):
            return
        known = next((node["id"] for node in await api.nodes() if node["hostname"] == hostname), "")
        token = await api.call("JoinService", "CreateJoinToken", hostname=hostname, nodeId=known)
        await _run([*daemon, "join", "-"], token["token"])


def _is_member(path: Path, authority: str) -> bool:
    """Tell whether a host's identity is of this authority, and good for a while."""
    try:
        document = json.loads(path.read_text())
        ends_at = x509.load_pem_x509_certificate(document["certificate"].encode()).not_valid_after_utc
        return bool(document["authority"] == authority) and ends_at > datetime.now(UTC) + _GOOD_FOR
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


async def _run(command: Sequence[str], given: str = "") -> str:
    """Run one of our programs and return what it printed.

    Raises:
        AccessFailed: it failed.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, complained = await process.communicate(f"{given}\n".encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise AccessFailed(complained.decode(errors="replace").strip() or f"{command[0]} ended with an error")
    return said.decode()
