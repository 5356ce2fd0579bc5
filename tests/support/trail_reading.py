"""The audit trail of a database that no control plane has open, as whoever has its keys reads it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from controlplane.audit.trail import Trail
from controlplane.domain.audit import AuditFilter, AuditRecord
from controlplane.secrets.keyring import Keyring
from controlplane.secrets.settings import SecretSettings
from controlplane.services.audit_records import AuditReader
from tests.support.identity_scene import Clock
from tests.support.stores import open_store


def records_of(url: str, secrets: SecretSettings) -> list[AuditRecord]:
    """Read the whole trail, newest first, and check that it is as it was written."""

    async def work() -> list[AuditRecord]:
        keyring = Keyring(secrets, Clock())
        async with open_store(url) as store:
            await keyring.unlock(store)
            trail = Trail(store, keyring.chain_key, Clock(), timedelta(days=1))
            reader = AuditReader(store, trail, keyring.chain_key)
            assert (await reader.verify()).faults == []
            return [view.record for view in (await reader.list(AuditFilter(), None, 100)).items]

    return asyncio.run(work())
