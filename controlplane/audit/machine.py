"""Records of what commands change on a control plane's machine itself, where nobody is asked who they are.

Whoever may run them can open the database, and so could change it unseen; the records are for those who mean well.
"""

from __future__ import annotations

import json
import os
import pwd
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Final

from controlplane.audit.chain import ChainKey
from controlplane.audit.trail import Trail
from controlplane.domain.audit import AuditEntry
from controlplane.state.interface import Store
from limiquantix.errors import ApiError, Code

MACHINE: Final = "machine"
"""Kind of the principal; its name is the user's on the machine."""
_KEEPS: Final = timedelta.max
"""A command forgets no records; control planes do."""


@asynccontextmanager
async def recorded(
    store: Store, key: Callable[[], ChainKey], command: str, arguments: Mapping[str, str], now: Callable[[], datetime]
) -> AsyncIterator[None]:
    """Keep a record of what happens inside: begun before it, completed whatever becomes of it.

    Args:
        command: as it is called, such as "admin create".
        arguments: none of them secret.

    Raises:
        Unavailable: the record cannot be written, and nothing happened.
    """
    trail, user = Trail(store, key, now, _KEEPS), _user()
    entry = AuditEntry(
        id=str(uuid.uuid4()),
        begun_at=now(),
        method=f"limiquantix-controlplane {command}",
        principal_kind=MACHINE,
        principal_id=user,
        principal_name=user,
        address=socket.gethostname(),
        request_json=json.dumps(dict(arguments), sort_keys=True),
    )
    await trail.write(entry)
    code, message = int(Code.INTERNAL), ""
    try:
        yield
        code = 0
    except ApiError as error:
        code, message = int(error.code), error.message
        raise
    finally:
        await trail.end(entry.id, code, message)
        await trail.settle()


def _user() -> str:
    """Name who runs this process."""
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
