"""Brings the database to the schema of this version, with a record of it in the audit trail.

Other commands of the machine begin their record before they do anything. This one cannot: the trail's tables may not be
there yet, or be those of an older version. So the record is written once the schema is there. What the migration itself
did is one transaction, and stays whole whatever becomes of the record.
"""

from __future__ import annotations

import uvloop

from controlplane.audit.machine import recorded
from controlplane.composition.rules import utc_now
from controlplane.config import ControlPlaneConfig
from controlplane.secrets.box import SecretUnreadable
from controlplane.secrets.keyring import Keyring
from controlplane.secrets.wrapping import KeysUnusable
from controlplane.state.engine import StoreLimits
from controlplane.state.factory import change_schema, create_store
from controlplane.state.interface import SchemaMismatch
from controlplane.state.revision import SchemaChange
from limiquantix.errors import ApiError


class MigrationUnrecorded(Exception):
    """The schema is brought up to date, and there is no record of it."""


def bring_up_to_date(config: ControlPlaneConfig) -> str:
    """Migrate the database and return its revision; safe to repeat. Blocks, outside of any event loop.

    No record is kept of a migration that changed nothing, since one runs before every start of a control plane, nor of
    one that failed, which changed nothing either. Nor is there one where the database has no keys yet, as at the first
    migration: no trail has begun, and to seal one a key would have to be made by whoever makes the tables, perhaps on
    a machine without a control plane, in a file that no control plane would have.

    Raises:
        MigrationUnrecorded: all is done but the record. To repeat it writes none, but lets a service go on that
            migrates before it starts: whatever kept the record away is told by what comes next, too.
        ValueError, SchemaMismatch, OSError, sqlalchemy.exc.DBAPIError: as `controlplane.state.factory.migrate`; the
            schema is what it was.
    """
    change = change_schema(config.database.url)
    if change.is_any:
        try:
            uvloop.run(_record(config, change))
        except (ApiError, KeysUnusable, SchemaMismatch, SecretUnreadable) as error:
            raise MigrationUnrecorded(
                f"the database is at revision {change.revision} now, but the audit trail has no record of that: {error}"
            ) from error
    return change.revision


async def _record(config: ControlPlaneConfig, change: SchemaChange) -> None:
    keyring = Keyring(config.secrets, utc_now)
    store = create_store(config.database.url, StoreLimits.for_connections(config.database.pool_size))
    try:
        await store.open()
        if not await keyring.is_made(store):
            return
        await keyring.unlock(store)
        arguments = {"from": change.before or "", "to": change.revision}
        async with recorded(store, keyring.chain_key, "migrate", arguments, utc_now):
            """It is done."""
    finally:
        await store.close()
