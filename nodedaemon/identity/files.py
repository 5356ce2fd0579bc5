"""What a host keeps of its identity: the key, the certificate, the authority, and where the control planes are.

All in one file that is replaced whole, so that a key and a certificate that do not belong together are never there.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from limiquantix.rpc.credentials import MachineCertificate
from limiquantix.rpc.identity import MachineIdentity, Role, identity_of

_MAX_BYTES: Final = 1_048_576


class IdentityUnusable(Exception):
    """What is kept, or was received, is no identity of a node; the message says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """Who this host is.

    Attributes:
        addresses: "host:port" of each control plane's port for hosts.
    """

    machine: MachineIdentity
    certificate: MachineCertificate
    addresses: tuple[str, ...]
    begins_at: datetime
    ends_at: datetime

    @classmethod
    def read(cls, certificate: MachineCertificate, addresses: tuple[str, ...]) -> NodeIdentity:
        """Read who a certificate is for.

        Raises:
            IdentityUnusable: it names no node, the key is another one's, or the authority did not sign it.
        """
        try:
            leaf = x509.load_pem_x509_certificate(certificate.certificate_pem)
            leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(certificate.authority_pem))
            key = serialization.load_pem_private_key(certificate.key_pem, password=None)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
            raise IdentityUnusable(
                f"the certificate, its key or its authority is damaged, or they do not belong together: {error}"
            ) from error
        if key.public_key() != leaf.public_key():
            raise IdentityUnusable("the key is not that of the certificate")
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        machine = identity_of(uris[0]) if len(uris) == 1 else None
        if machine is None or machine.role is not Role.NODE:
            raise IdentityUnusable("the certificate is none of a node")
        return cls(machine, certificate, addresses, leaf.not_valid_before_utc, leaf.not_valid_after_utc)


@dataclass(frozen=True, slots=True)
class IdentityFile:
    """The identity on disk. Blocks, but shortly."""

    path: Path

    @classmethod
    def under(cls, data_dir: Path) -> IdentityFile:
        """Say where a daemon with this directory keeps it."""
        return cls(data_dir / "identity" / "identity.json")

    def load(self) -> NodeIdentity | None:
        """Read it; None on a host that did not join.

        Raises:
            IdentityUnusable: it is damaged, or others than this user may read or replace it.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise IdentityUnusable(f"{self.path} cannot be opened: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if status.st_mode & 0o077 or status.st_uid != os.geteuid():
                raise IdentityUnusable(
                    f"{self.path} holds a private key and is not the daemon's alone; chown and chmod 600 it"
                )
            content = file.read(_MAX_BYTES)
        try:
            return _read(content)
        except (ValueError, KeyError, TypeError, AttributeError, IdentityUnusable) as error:
            raise IdentityUnusable(
                f"{self.path} is damaged ({error}); join again with a token of "
                "`limiquantix node token create --node NODE`"
            ) from error

    def require_writable(self) -> None:
        """Make its directory, for this user only, and see that a file can be made there.

        Raises:
            OSError: it cannot.
        """
        directory = self.path.parent
        directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        directory.chmod(0o700)
        scratch = self._scratch()
        scratch.touch(mode=0o600, exist_ok=False)
        scratch.unlink()

    def save(self, identity: NodeIdentity) -> None:
        """Keep another one in its place, whole or not at all; once this returns it is on the disk.

        Raises:
            OSError: it cannot be written; the one before holds on.
        """
        self.require_writable()
        held = identity.certificate
        document = {
            "key": held.key_pem.decode(),
            "certificate": held.certificate_pem.decode(),
            "authority": held.authority_pem.decode(),
            "addresses": list(identity.addresses),
        }
        scratch = self._scratch()
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(document, indent=1).encode())
                file.flush()
                os.fsync(descriptor)
            scratch.replace(self.path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _scratch(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")


def _read(content: bytes) -> NodeIdentity:
    document = json.loads(content)
    held = MachineCertificate(
        document["certificate"].encode(), document["key"].encode(), document["authority"].encode()
    )
    return NodeIdentity.read(held, tuple(map(str, document["addresses"])))
