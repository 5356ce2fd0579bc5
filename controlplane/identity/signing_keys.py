"""The keys that sign access tokens: shared by all control planes, a new one every day, sealed where they are stored."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from controlplane.domain import identity_errors
from controlplane.domain.identity import SigningKey
from controlplane.identity.tokens import LIFETIME, AccessClaims, TokenMaker, UnknownKeyError
from controlplane.secrets.box import SecretBox, SecretUnreadable
from controlplane.state.interface import Store, Transaction

SIGNS_FOR: Final = timedelta(days=1)
_SLACK: Final = timedelta(minutes=5)
"""Beyond the end of the last token, for clocks that differ."""
_LOOK_EVERY_S: Final = 1.0
"""A token with an unknown key makes this process look for new ones, but no more often: anybody can invent one."""
_PURPOSE: Final = "identity.signing-key"

_log = logging.getLogger(__name__)


class SigningKeys:
    """Signs with the newest key and checks with all. Owned by the event loop's thread.

    Args:
        now: an aware clock.
        clock: seconds that only ever grow.
    """

    def __init__(
        self,
        store: Store,
        box: SecretBox,
        maker: TokenMaker,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._box = box
        self._maker = maker
        self._now = now
        self._clock = clock
        self._public: dict[str, Ed25519PublicKey] = {}
        self._signer: tuple[SigningKey, Ed25519PrivateKey] | None = None
        self._turn = asyncio.Lock()
        self._looked_s = float("-inf")

    async def sign(self, user_id: str, session_id: str) -> tuple[str, datetime]:
        """Make a token; returns it and when it ends. Makes the key first if none signs any more.

        Raises:
            Unavailable: the database does not answer.
        """
        now = self._now()
        key, private = await self._signing(now)
        return self._maker.sign(private, key.id, user_id, session_id, now), now + LIFETIME

    async def verify(self, token: str) -> AccessClaims:
        """Read a token; looks for new keys, at most once a second, if it names one that is not known.

        Raises:
            Unauthenticated: it is not good.
            Unavailable: the database does not answer, and the key is not known.
        """
        try:
            return self._maker.verify(token, self._public, self._now())
        except UnknownKeyError:
            await self._look()
        try:
            return self._maker.verify(token, self._public, self._now())
        except UnknownKeyError:
            raise identity_errors.credential_refused() from None

    async def _look(self) -> None:
        async with self._turn:
            if self._clock() - self._looked_s >= _LOOK_EVERY_S:
                self._learn(await self._store.read(lambda tx: tx.signing_keys()))

    async def _signing(self, now: datetime) -> tuple[SigningKey, Ed25519PrivateKey]:
        if self._signer is None or now >= self._signer[0].signs_until:
            async with self._turn:
                if self._signer is None or now >= self._signer[0].signs_until:
                    self._learn(await self._store.run(lambda tx: self._with_one_that_signs(tx, now)))
        assert self._signer is not None  # noqa: S101 - the transaction above made one that opens
        return self._signer

    async def _with_one_that_signs(self, tx: Transaction, now: datetime) -> Sequence[SigningKey]:
        """Read all keys; add one if none of them signs now and can be opened."""
        known = await tx.signing_keys()
        if any(key.signs_until > now and self._opened(key) is not None for key in known[:1]):
            return known
        new = self._made(known[0].number + 1 if known else 1, now)
        await tx.insert_signing_key(new)
        return [new, *known]

    def _made(self, number: int, now: datetime) -> SigningKey:
        private = Ed25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        key_id = uuid.uuid4().hex
        return SigningKey(
            number=number,
            id=key_id,
            sealed=self._box.seal(private, _PURPOSE, key_id),
            created_at=now,
            signs_until=now + SIGNS_FOR,
            verifies_until=now + SIGNS_FOR + LIFETIME + _SLACK,
        )

    def _learn(self, found: Sequence[SigningKey]) -> None:
        """Keep those that are good. The public part comes from the sealed one: nothing else in the row is trusted."""
        self._looked_s = self._clock()
        now = self._now()
        opened = [(key, private) for key in found if key.verifies_until > now and (private := self._opened(key))]
        self._public = {key.id: private.public_key() for key, private in opened}
        self._signer = opened[0] if opened else None

    def _opened(self, key: SigningKey) -> Ed25519PrivateKey | None:
        try:
            return Ed25519PrivateKey.from_private_bytes(self._box.open(key.sealed, _PURPOSE, key.id))
        except (SecretUnreadable, ValueError):
            _log.warning("signing key %d cannot be opened; tokens that it signed are refused", key.number)
            return None
