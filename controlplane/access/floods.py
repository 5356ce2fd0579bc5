"""Ends connections that send much more than the calls made over them can need.

A server bounds what a call may send. How many header fields, empty frames, settings and resets come around calls, or
without any, HTTP/2 leaves open, and gRPC reads all of it, in the thread that serves everybody, before anything is known
of who sends. So the bytes that the kernel counted for a connection are held against an allowance that calls add to: a
little for each that strangers may make, the largest message for each of somebody known, who is counted elsewhere.
An address whose connections were ended repeatedly gets no new ones for a while.
"""

from __future__ import annotations

import asyncio
import ipaddress
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from controlplane.access.own_sockets import MAX_BARRED, Accepted, OwnSockets
from limiquantix.rpc.peers import Peer, customer_of, peer_of

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FloodRules:
    """How much is a flood.

    Attributes:
        burst_bytes: allowed at once without any call: handshakes, settings, a few refused calls.
        rate_bytes_s: allowed all the time: pings, and windows that are opened for what is received.
        replies_share: of what was sent to the other end, which it acknowledges; downloads have no calls of their own.
        stranger_bytes: for each call of a stranger that is not one too many; most are refused by their headers.
        known_bytes: for each call of somebody known: the largest message, and its headers.
        most_bytes: of allowance kept; more calls at once do not add to it.
        idle_s: how long a connection may stand without a call, over which nobody known has ever called.
        max_unknown_count: of connections of one address over which nobody known has called; the newest are ended.
        patience_s: for so long more may have come than is allowed: the call that explains it may be on its way. From
            where a flood came lately it must be known by the next look.
        excess_bytes: beyond what is allowed, with which nobody has patience.
        offences: so many connections ended for a flood within `offence_s` bar their address.
        barred_s: for so long.
        shared_barred_s: so long if many share the address who have nothing to do with each other; clients of theirs
            that connect meanwhile try again by themselves.
    """

    burst_bytes: int = 256 * 2**10
    rate_bytes_s: int = 8 * 2**10
    replies_share: float = 1 / 8
    stranger_bytes: int = 16 * 2**10
    known_bytes: int = 17 * 2**20
    most_bytes: int = 512 * 2**20
    idle_s: float = 120.0
    max_unknown_count: int = 200
    patience_s: float = 0.5
    excess_bytes: int = 2**20
    offences: int = 3
    offence_s: float = 60.0
    barred_s: float = 60.0
    shared_barred_s: float = 2.0


class Sockets(Protocol):
    """The connections of a listening port; see `OwnSockets`."""

    def accepted(self) -> Sequence[Accepted]:
        """Look at all."""
        ...

    def end(self, connection: Accepted) -> None:
        """Close one."""
        ...

    def bar(self, addresses: Collection[str]) -> None:
        """Take no new ones of these addresses, and of all others."""
        ...


@dataclass(slots=True)
class _Account:
    since_s: float
    called_s: float
    counted_s: float
    allowance_bytes: float
    overdrawn_since_s: float | None = None
    """Since when more has come than is allowed."""
    received_bytes: int = 0
    sent_bytes: int = 0
    is_known: bool = False


@dataclass(slots=True)
class Calls:
    """How many were made over a connection since the last look."""

    stranger_count: int = 0
    known_count: int = 0

    def __add__(self, other: Calls) -> Calls:
        return Calls(self.stranger_count + other.stranger_count, self.known_count + other.known_count)


@dataclass
class FloodBook:
    """The account of every connection, and of the addresses that had some ended. Pure: time and sockets are given."""

    rules: FloodRules = field(default_factory=FloodRules)
    is_shared: Callable[[str], bool] = lambda _: False
    _accounts: dict[int, _Account] = field(default_factory=dict)
    _early: dict[Peer, tuple[float, Calls]] = field(default_factory=dict)
    """Calls over connections that no look has seen yet, and since when: accepted after the sockets were looked at."""
    _offences: dict[str, list[float]] = field(default_factory=dict)
    _barred_until_s: dict[str, float] = field(default_factory=dict)

    def look(self, now_s: float, connections: Iterable[Accepted], calls: Mapping[Peer, Calls]) -> Sequence[Accepted]:
        """Bring all accounts up to date; returns the connections to end."""
        previous, self._accounts = self._accounts, {}
        unclaimed = self._with_early(calls)
        ended: list[Accepted] = []
        unknown: dict[str, list[tuple[float, Accepted]]] = defaultdict(list)
        for connection in connections:
            account = previous.get(connection.id) or _Account(now_s, now_s, now_s, self.rules.burst_bytes)
            self._accounts[connection.id] = account
            self._charge(account, connection, unclaimed.pop(Peer(connection.address, connection.port), None), now_s)
            if self._is_flood(account, connection.address, now_s):
                self._offend(connection.address, now_s)
                ended.append(connection)
            elif not account.is_known:
                if now_s - account.called_s > self.rules.idle_s:
                    ended.append(connection)
                else:
                    unknown[customer_of(connection.address)].append((account.since_s, connection))
        for those in unknown.values():
            those.sort(key=lambda each: each[0])
            ended.extend(connection for _, connection in those[self.rules.max_unknown_count :])
        for connection in ended:
            del self._accounts[connection.id]
        self._keep_early(unclaimed, now_s)
        self._forget(now_s)
        return ended

    @property
    def is_alert(self) -> bool:
        """Whether somebody flooded lately."""
        return bool(self._offences)

    @property
    def barred(self) -> frozenset[str]:
        """Addresses that get no new connections now."""
        return frozenset(self._barred_until_s)

    def _with_early(self, calls: Mapping[Peer, Calls]) -> dict[Peer, Calls]:
        """Add the calls of earlier looks whose connections were not seen then."""
        found = dict(calls)
        for peer, (_, before) in self._early.items():
            found[peer] = before + found.get(peer, Calls())
        return found

    def _keep_early(self, unclaimed: Mapping[Peer, Calls], now_s: float) -> None:
        """Keep the calls whose connections are not seen yet; what has been kept for long is of one that is gone."""
        before, self._early = self._early, {}
        for peer, calls in unclaimed.items():
            since_s, _ = before.get(peer, (now_s, calls))
            if since_s == now_s or now_s - since_s < self.rules.patience_s:
                self._early[peer] = (since_s, calls)

    def _charge(self, account: _Account, connection: Accepted, calls: Calls | None, now_s: float) -> None:
        rules = self.rules
        received = connection.received_bytes - account.received_bytes
        sent = connection.sent_bytes - account.sent_bytes
        # Silence is not saved up: a connection without calls for a day may not flood for a minute.
        rested = account.allowance_bytes + rules.rate_bytes_s * (now_s - account.counted_s)
        allowance = max(account.allowance_bytes, min(rested, rules.burst_bytes)) + rules.replies_share * sent
        if calls is not None:
            allowance += rules.stranger_bytes * calls.stranger_count + rules.known_bytes * calls.known_count
            account.is_known |= calls.known_count > 0
            account.called_s = now_s
        most_bytes = rules.most_bytes if account.is_known else 2 * rules.burst_bytes
        account.allowance_bytes = min(allowance, most_bytes) - received
        account.received_bytes, account.sent_bytes = connection.received_bytes, connection.sent_bytes
        account.counted_s = now_s
        if account.allowance_bytes >= 0:
            account.overdrawn_since_s = None
        elif account.overdrawn_since_s is None:
            account.overdrawn_since_s = now_s

    def _is_flood(self, account: _Account, address: str, now_s: float) -> bool:
        since_s = account.overdrawn_since_s
        if since_s is None:
            return False
        if account.allowance_bytes < -self.rules.excess_bytes or now_s - since_s >= self.rules.patience_s:
            return True
        return now_s > since_s and customer_of(address) in self._offences

    def _offend(self, address: str, now_s: float) -> None:
        customer, rules = customer_of(address), self.rules
        lately = [each for each in self._offences.get(customer, ()) if now_s - each < rules.offence_s]
        lately.append(now_s)
        self._offences[customer] = lately[-rules.offences :]
        if len(lately) < rules.offences:
            return
        if customer in self._barred_until_s or len(self._barred_until_s) < MAX_BARRED:
            barred_s = rules.shared_barred_s if self.is_shared(address) else rules.barred_s
            self._barred_until_s[customer] = now_s + barred_s

    def _forget(self, now_s: float) -> None:
        self._barred_until_s = {each: until_s for each, until_s in self._barred_until_s.items() if until_s > now_s}
        self._offences = {
            each: times for each, times in self._offences.items() if now_s - times[-1] < self.rules.offence_s
        }


class FloodWatch:
    """Looks after the connections of one port; the guard says what calls are made.

    Attributes:
        port: where the connections are accepted; known once something listens there.
    """

    def __init__(
        self,
        sockets_at: Callable[[int], Sockets] = OwnSockets,
        book: FloodBook | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.port = 0
        self._sockets_at = sockets_at
        self._book = book or FloodBook()
        self._now_s = now_s
        self._calls: deque[tuple[str, bool]] = deque(maxlen=_MAX_NOTED)
        self._said_s: dict[str, float] = {}

    def known_called(self, peer: str) -> None:
        """Note a call of somebody known; `peer` as `CallOrigin.peer` has it."""
        self._calls.append((peer, True))

    def stranger_called(self, peer: str) -> None:
        """Note a call of somebody unknown that was not one too many."""
        self._calls.append((peer, False))

    async def run(self) -> None:
        """Look again and again until cancelled."""
        is_over = threading.Event()
        # Not a task: the loop is what a flood keeps busy.
        thread = threading.Thread(target=self._keep_looking, args=(is_over,), name="floods", daemon=True)
        thread.start()
        try:
            await asyncio.Event().wait()
        finally:
            is_over.set()

    def _keep_looking(self, is_over: threading.Event) -> None:
        sockets, rest_s = self._sockets_at(self.port), 0.0
        while not is_over.wait(rest_s):
            began_s = time.thread_time()
            try:
                self.look(sockets)
            except (OSError, struct.error) as error:
                _log.error("connections_not_watched", error=str(error), advice="limit connections in front of the port")
                return
            usual_s = _ALERT_S if self._book.is_alert else _CALM_S
            rest_s = min(max((time.thread_time() - began_s) / _SHARE, usual_s), _LONGEST_S)

    def look(self, sockets: Sockets) -> None:
        """Look once, and end what is to be ended."""
        connections = sockets.accepted()
        # After the sockets: what came by then over a call that was let in is explained by it.
        before, now_s = self._book.barred, self._now_s()
        for connection in self._book.look(now_s, connections, self._called()):
            sockets.end(connection)
            self._say(connection, now_s)
        if self._book.barred != before:
            sockets.bar(self._book.barred)
            _log.warning("addresses_barred", addresses=sorted(self._book.barred))

    def _called(self) -> Mapping[Peer, Calls]:
        """Take all calls that were noted since the last look."""
        by_text: dict[str, Calls] = defaultdict(Calls)
        while self._calls:
            peer, is_known = self._calls.popleft()
            if is_known:
                by_text[peer].known_count += 1
            else:
                by_text[peer].stranger_count += 1
        return {peer_of(peer): calls for peer, calls in by_text.items()}

    def _say(self, connection: Accepted, now_s: float) -> None:
        """Log it, once a minute and address."""
        if now_s - self._said_s.get(connection.address, -_SAY_S) < _SAY_S:
            return
        self._said_s = {each: said_s for each, said_s in self._said_s.items() if now_s - said_s < _SAY_S}
        self._said_s[connection.address] = now_s
        _log.warning(
            "connection_ended",
            address=connection.address,
            received_bytes=connection.received_bytes,
            why="it sent more than its calls need, or stood long without one",
        )


_MAX_NOTED: Final = 200_000
"""More calls than are served between two looks."""
_SHARE: Final = 0.02
"""Of one CPU's time, spent on looking at most."""
_CALM_S, _ALERT_S, _LONGEST_S = 0.1, 0.02, 2.0
_SAY_S: Final = 60.0


def shared_with(proxies: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> Callable[[str], bool]:
    """Tell which addresses many share: the machine's own, which all programs on it have, and those of known proxies."""

    def is_shared(address: str) -> bool:
        found = ipaddress.ip_address(address)
        return found.is_loopback or any(found in each for each in proxies)

    return is_shared
