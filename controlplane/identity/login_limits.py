"""How fast logins may be tried: the longer a row of failures, the longer the wait, for a name and for an address.

Counted in the database, since an attacker asks all control planes. A try is counted before the password is compared and
taken back when it was right, so that a thousand at once are no more than a thousand one after the other.

A name alone would let anybody keep its owner out, and an address alone whoever shares it. So from an address whence
somebody logged in as that name before, a count of its own is kept, and only that: strangers do not reach it, nor does
what others try from there. Source: OWASP, "Slow Down Online Guessing Attacks with Device
Cookies", with the address in the cookie's place.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from controlplane.domain import identity_errors
from controlplane.domain.identity import LoginFailures
from controlplane.state.interface import Transaction
from limiquantix.rpc.peers import counted_address

KNOWN_FOR: Final = timedelta(days=30)
_KNOWN: Final = -1
"""Count of an address that is known for a name, and has no failures."""


@dataclass(frozen=True, slots=True)
class Limit:
    """After `free_count` failures in a row, each doubles the wait; a row is over after `forgets` without one."""

    free_count: int
    longest: timedelta
    forgets: timedelta = timedelta(hours=1)

    def wait(self, count: int) -> timedelta:
        """How long nobody may try after so many failures."""
        beyond = count - self.free_count
        if beyond < 0:
            return timedelta(0)
        return min(timedelta(seconds=2 ** min(beyond, 20)), self.longest)


OF_NAME: Final = Limit(free_count=5, longest=timedelta(minutes=5))
OF_ADDRESS: Final = Limit(free_count=30, longest=timedelta(minutes=1))
"""More, and shorter: many people may stand behind one address."""


@dataclass(frozen=True, slots=True)
class Try:
    """A login that goes on; `counted_keys` is under what it was counted: for its name, and mostly for its address."""

    counted_keys: tuple[str, ...]
    known_key: str


async def begin(tx: Transaction, name: str, origin: str, now: datetime) -> tuple[Try, float]:
    """Count a try as failed, until `succeeded` takes that back.

    Returns:
        The try, and how many seconds to wait first; if these are not 0, nothing was counted and it must not go on.
    """
    digest, address = hashlib.sha256(name.casefold().encode()).hexdigest(), address_of(origin)
    name_key, known_key, address_key = f"name {digest}", f"known {digest} {address}", f"address {address}"
    before = await tx.login_failures([name_key, known_key, address_key])
    stored = {each.key: each for each in before}
    known = stored.get(known_key)
    is_known = known is not None and now - known.last_at < KNOWN_FOR
    counted = [(known_key, OF_NAME)] if is_known else [(name_key, OF_NAME), (address_key, OF_ADDRESS)]
    this = Try(tuple(key for key, _ in counted), known_key)
    waits = [stored[key].waits_until - now for key, _ in counted if key in stored]
    wait = max(waits, default=timedelta(0))
    if wait > timedelta(0):
        return this, wait.total_seconds()
    await tx.write_login_failures([_one_more(stored.get(key), key, limit, now) for key, limit in counted], before)
    return this, 0.0


async def succeeded(tx: Transaction, this: Try, now: datetime) -> None:
    """Forget the failures of a name, remember the address, and take the try back from its count."""
    changed = [LoginFailures(this.known_key, _KNOWN, now, now)]
    before = await tx.login_failures([this.known_key, *this.counted_keys])
    if this.counted_keys != (this.known_key,):
        name_key, address_key = this.counted_keys
        changed.append(LoginFailures(name_key, 0, now, now))
        of_address = next((each for each in before if each.key == address_key), None)
        if of_address is not None:
            changed.append(replace(of_address, count=max(of_address.count - 1, 0), waits_until=now))
    await tx.write_login_failures(changed, before)


def refuse_for(wait_s: float) -> None:
    """Refuse a try that must wait.

    Raises:
        ResourceExhausted: there is something to wait for.
    """
    if wait_s > 0:
        raise identity_errors.too_many_logins(max(wait_s, 1.0))


def address_of(origin: str) -> str:
    """Return what is counted of where a call comes from; all of whom nothing is known are one."""
    return counted_address(origin) or "unknown"


def _one_more(stored: LoginFailures | None, key: str, limit: Limit, now: datetime) -> LoginFailures:
    count = 0 if stored is None or now - stored.last_at >= limit.forgets else max(stored.count, 0)
    return LoginFailures(key, count + 1, now, now + limit.wait(count + 1))
