"""`limiquantix-controlplane secrets`: new keys for what is kept secret."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import click

from controlplane.audit.machine import recorded
from controlplane.secrets.key_file import add_key
from controlplane.secrets.keyring import ACTIVE_AFTER_S, Keyring, seal_everything
from controlplane.secrets.settings import SecretSettings
from controlplane.secrets.wrapping import KeysUnusable
from controlplane.state.engine import StoreLimits
from controlplane.state.factory import create_store
from controlplane.state.interface import SchemaMismatch, Store
from controlplane.state.seals import Seals
from limiquantix.errors import ApiError

Rotation = Callable[[Keyring, Store], Awaitable[None]]


def rotate(url: str, limits: StoreLimits, settings: SecretSettings, wait_s: float = ACTIVE_AFTER_S) -> None:
    """Make a new data key, wait until every control plane knows it, and seal everything with it.

    Safe to repeat, and while control planes run.

    Args:
        wait_s: less only where no control plane runs.

    Raises:
        ClickException: the database or the keys cannot be opened.
    """

    async def work(keyring: Keyring, store: Store) -> None:
        key_id = await keyring.add_key(store)
        click.echo(f"data key {key_id} is made; waiting {wait_s:g} s until every control plane knows it")
        await asyncio.sleep(wait_s)
        await keyring.look(store)
        await seal_everything(store)
        click.echo("what VMs and operations keep secret is sealed with it")

    _with_keys(url, limits, settings, "secrets rotate", work)


def rotate_file(url: str, limits: StoreLimits, settings: SecretSettings) -> None:
    """Put a new key into the key file, and wrap the data keys with it.

    Raises:
        ClickException: the database or the keys cannot be opened, or the file cannot be written.
    """

    async def work(keyring: Keyring, store: Store) -> None:
        await asyncio.to_thread(add_key, settings.key_file)
        await keyring.unlock(store)  # wraps anew what is not wrapped with the first key of the file

    _with_keys(url, limits, settings, "secrets rotate-file", work)
    click.echo(
        f"{settings.key_file} has a new first key, with which the data keys are wrapped; copy the file to every "
        "control plane, then older keys may be taken out of it"
    )


def _with_keys(url: str, limits: StoreLimits, settings: SecretSettings, command: str, work: Rotation) -> None:
    def now() -> datetime:
        return datetime.now(UTC)

    async def run() -> None:
        keyring = Keyring(settings, now)
        store = create_store(url, limits, Seals(keyring.box))
        try:
            await store.open()
            await keyring.unlock(store)
            async with recorded(store, keyring.chain_key, command, {}, now):
                await work(keyring, store)
        finally:
            await store.close()

    try:
        asyncio.run(run())
    except (ApiError, KeysUnusable, SchemaMismatch, ValueError) as error:
        raise click.ClickException(str(error)) from error
