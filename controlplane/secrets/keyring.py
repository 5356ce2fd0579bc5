"""The keys that seal what is secret in the database, which lie there themselves, wrapped.

Every process has all of them, and seals with the newest that has been there for `ACTIVE_AFTER_S`: by then the others,
which look every `LOOK_EVERY_S`, have it too. None is ever removed, since nobody knows what was sealed with it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import structlog

from controlplane.audit.chain import KEY_BYTES as CHAIN_KEY_BYTES
from controlplane.audit.chain import ChainKey
from controlplane.secrets.box import KEY_BYTES, SecretBox
from controlplane.secrets.key_file import FileKeys, read_or_make
from controlplane.secrets.kms import KmsKeys
from controlplane.secrets.settings import SecretSettings
from controlplane.secrets.wrapping import KeysUnusable, KeyWrapper
from controlplane.state.audit_interface import SealedSecret
from controlplane.state.interface import Store
from limiquantix.errors import Aborted, ApiError

ACTIVE_AFTER_S: Final = 60.0
LOOK_EVERY_S: Final = 15.0

_DATA_KEY: Final = "data-key"
_CHAIN_KEY: Final = "audit-chain"
_ONLY: Final = "1"
_BATCH: Final = 100

_log = structlog.get_logger(__name__)


class Keyring:
    """Opens the keys and keeps them level with the database. Owned by the event loop's thread.

    Attributes:
        box: what everything is sealed with; gets its keys from `unlock`.
    """

    def __init__(self, settings: SecretSettings, now: Callable[[], datetime]) -> None:
        self.box = SecretBox.locked()
        self._settings = settings
        self._now = now
        self._opened: dict[str, bytes] = {}
        self._chain_key: ChainKey | None = None
        self._store: Store | None = None

    def chain_key(self) -> ChainKey:
        """Return the key of the audit trail.

        Raises:
            KeysUnusable: `unlock` was not called.
        """
        if self._chain_key is None:
            raise KeysUnusable("the keys are not open yet")
        return self._chain_key

    async def is_made(self, store: Store) -> bool:
        """Whether the database has keys; where it has none, `unlock` makes them."""
        return bool(await store.read(lambda tx: tx.sealed_secrets(_DATA_KEY)))

    async def unlock(self, store: Store) -> None:
        """Open all keys; makes those that are missing, of several processes at once one does.

        Raises:
            KeysUnusable: the key file or the command does not open them.
            Unavailable: the database does not answer.
        """
        self._store = store
        found = await store.read(lambda tx: tx.sealed_secrets(_DATA_KEY))
        wrapper, older = await self._wrappers(has_keys=bool(found))
        if not found:
            await self._add(store, wrapper, _ONLY)
            found = await store.read(lambda tx: tx.sealed_secrets(_DATA_KEY))
        for key_id, stored in found.items():
            by = wrapper if older is None or wrapper.is_current(stored.sealed) else older
            self._opened[key_id] = await self._open(by, stored, key_id)
            if not wrapper.is_current(stored.sealed):
                wrapped = await wrapper.wrap(self._opened[key_id], key_id)
                await _replace(store, key_id, wrapped)
        self._choose(found)
        self._chain_key = ChainKey(await self._chain_secret(store))

    async def look(self, store: Store) -> None:
        """Open keys that came since, and begin to use those whose time has come. Raises as `unlock`."""
        found = await store.read(lambda tx: tx.sealed_secrets(_DATA_KEY))
        new = found.keys() - self._opened.keys()
        if new:
            wrapper, _ = await self._wrappers(has_keys=True)
            for key_id in new:
                self._opened[key_id] = await self._open(wrapper, found[key_id], key_id)
        self._choose(found)

    async def run(self) -> None:
        """Look for new keys in the store that was unlocked, until cancelled."""
        while self._store is not None:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look(self._store)
            except (ApiError, KeysUnusable) as error:
                _log.error("secret_keys_not_read", error=str(error))

    async def add_key(self, store: Store) -> str:
        """Make a new data key, which is used after `ACTIVE_AFTER_S`; returns its id. Raises as `unlock`."""
        wrapper, _ = await self._wrappers(has_keys=True)
        found = await store.read(lambda tx: tx.sealed_secrets(_DATA_KEY))
        key_id = str(max(map(int, found), default=0) + 1)
        await self._add(store, wrapper, key_id)
        await self.look(store)
        return key_id

    def _choose(self, found: Mapping[str, SealedSecret]) -> None:
        """Seal with the newest key that everybody knows by now; the first one is known to all who started."""
        known_since = self._now() - timedelta(seconds=ACTIVE_AFTER_S)
        ids = sorted(found, key=int, reverse=True)
        active = [key_id for key_id in ids if found[key_id].created_at <= known_since] or [ids[-1]]
        waiting = [key_id for key_id in ids if key_id not in active]
        self.box.use([self._opened[key_id] for key_id in (*active, *waiting)])

    async def _wrappers(self, *, has_keys: bool) -> tuple[KeyWrapper, KeyWrapper | None]:
        """Return what wraps, and what unwraps keys of an earlier configuration."""
        path: Path = self._settings.key_file
        if not self._settings.kms_command:
            return await asyncio.to_thread(read_or_make, path, may_make=not has_keys), None
        older = await asyncio.to_thread(_read_older, path)
        return KmsKeys(self._settings.kms_command, self._settings.kms_limit_s), older

    @staticmethod
    async def _open(wrapper: KeyWrapper, stored: SealedSecret, key_id: str) -> bytes:
        key = await wrapper.unwrap(stored.sealed, key_id)
        if len(key) != KEY_BYTES:
            raise KeysUnusable(f"data key {key_id} has {len(key)} bytes and not {KEY_BYTES}; the key command is wrong")
        return key

    async def _add(self, store: Store, wrapper: KeyWrapper, key_id: str) -> None:
        wrapped = await wrapper.wrap(os.urandom(KEY_BYTES), key_id)
        await _add(store, _DATA_KEY, key_id, wrapped, self._now())

    async def _chain_secret(self, store: Store) -> bytes:
        kept = await store.read(lambda tx: tx.sealed_secrets(_CHAIN_KEY))
        if _ONLY not in kept:
            sealed = self.box.seal(os.urandom(CHAIN_KEY_BYTES), _CHAIN_KEY, _ONLY)
            await _add(store, _CHAIN_KEY, _ONLY, sealed, self._now())
            kept = await store.read(lambda tx: tx.sealed_secrets(_CHAIN_KEY))
        return self.box.open(kept[_ONLY].sealed, _CHAIN_KEY, _ONLY)


def _read_older(path: Path) -> FileKeys | None:
    return read_or_make(path, may_make=False) if path.exists() else None


async def seal_everything(store: Store) -> None:
    """Seal what is not sealed yet, or with an older key than the newest; may be repeated, and beside other processes.

    Raises:
        Unavailable: the database does not answer.
    """

    for reseal in (_reseal_vms, _reseal_operations):
        after_id = await reseal(store, "")
        while after_id:
            after_id = await reseal(store, after_id)


async def _reseal_vms(store: Store, after_id: str) -> str:
    return await store.run(lambda tx: tx.reseal_vms(after_id, _BATCH))


async def _reseal_operations(store: Store, after_id: str) -> str:
    return await store.run(lambda tx: tx.reseal_operations(after_id, _BATCH))


async def _add(store: Store, kind: str, secret_id: str, sealed: bytes, at: datetime) -> None:
    """Keep a secret, unless another process kept one of that id meanwhile."""
    try:
        await store.run(lambda tx: tx.add_secret(kind, secret_id, sealed, at))
    except Aborted:
        _log.info("secret_made_by_another_process", kind=kind, id=secret_id)


async def _replace(store: Store, key_id: str, wrapped: bytes) -> None:
    await store.run(lambda tx: tx.replace_secret(_DATA_KEY, key_id, wrapped))
