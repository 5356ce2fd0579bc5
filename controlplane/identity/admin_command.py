"""`limiquantix-controlplane admin`: makes administrators on the machine itself, as nobody can log in before the first.

Whoever can read the configuration can open the database, and so could do the same by hand.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import click

from controlplane.audit.machine import recorded
from controlplane.config import ControlPlaneConfig
from controlplane.identity.administrators import Administrators
from controlplane.identity.passwords import Passwords, made_password
from controlplane.secrets.keyring import Keyring
from controlplane.secrets.wrapping import KeysUnusable
from controlplane.state.engine import StoreLimits
from controlplane.state.factory import create_store
from controlplane.state.interface import SchemaMismatch
from limiquantix.errors import ApiError

_generate = click.option("--generate", is_flag=True, help="Make a password and print it, instead of asking for one.")


@click.group()
def admin() -> None:
    """Make administrators, and give them new passwords. Works on the database, whether or not a server runs."""


@admin.command("create")
@click.argument("name")
@_generate
@click.pass_obj
def create(config: ControlPlaneConfig, name: str, generate: bool) -> None:
    """Make a user who is admin of the cluster. The password is asked for, or read from standard input.

    Example: limiquantix-controlplane --config controlplane.yaml admin create alice
    """
    password = made_password() if generate else _asked_for()

    async def work(administrators: Administrators) -> None:
        await administrators.create(name, password)

    _run(config, "create", name, work)
    click.echo(f"user {name} is admin of the cluster; log in with: limiquantix login {name}")
    _show(password, is_made=generate)


@admin.command("reset")
@click.argument("name")
@_generate
@click.pass_obj
def reset(config: ControlPlaneConfig, name: str, generate: bool) -> None:
    """Give a user a new password, and enable them. The user's sessions end.

    Example: limiquantix-controlplane --config controlplane.yaml admin reset alice
    """
    password = made_password() if generate else _asked_for()
    _run(config, "reset", name, lambda administrators: administrators.reset(name, password))
    click.echo(f"user {name} has a new password")
    _show(password, is_made=generate)


def _asked_for() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")


def _show(password: str, *, is_made: bool) -> None:
    if is_made:
        click.echo(f"password (shown only now): {password}")


def _run(
    config: ControlPlaneConfig, command: str, name: str, work: Callable[[Administrators], Awaitable[None]]
) -> None:
    """Do the work on the configured database, with a record of it in the audit trail.

    Raises:
        ClickException: the database or its keys cannot be opened, or the work is refused.
    """

    async def with_store() -> None:
        keyring, passwords = Keyring(config.secrets, _now), Passwords()
        store = create_store(config.database.url, StoreLimits.for_connections(config.database.pool_size))
        try:
            await store.open()
            await keyring.unlock(store)
            async with recorded(store, keyring.chain_key, f"admin {command}", {"name": name}, _now):
                await work(Administrators(store, passwords, _now))
        finally:
            passwords.close()
            await store.close()

    try:
        asyncio.run(with_store())
    except ApiError as error:
        raise click.ClickException(error.message) from error
    except (SchemaMismatch, KeysUnusable) as error:
        raise click.ClickException(str(error)) from error
    except (ValueError, RuntimeError) as error:
        raise click.ClickException(f"database.url: {error}") from error


def _now() -> datetime:
    return datetime.now(UTC)
