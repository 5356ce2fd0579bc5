"""Who sends more than calls need loses the connection, and in the end the way in; nobody else does."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import pytest

from controlplane.access.floods import Calls, FloodBook, FloodRules, FloodWatch, shared_with
from controlplane.access.own_sockets import MAX_BARRED, Accepted
from limiquantix.rpc.peers import Peer

RULES = FloodRules()
KIB, MIB = 2**10, 2**20
ADDRESS = "192.0.2.7"
ONE_LOOK_S = 0.1


@dataclass
class Site:
    """A port with connections, and time that passes look by look."""

    book: FloodBook = field(default_factory=FloodBook)
    now_s: float = 100.0
    connections: dict[int, Accepted] = field(default_factory=dict)

    def connect(self, number: int = 1, address: str = ADDRESS) -> Accepted:
        """Accept a connection."""
        self.connections[number] = Accepted(number, address, 40_000 + number, 0, 0)
        return self.connections[number]

    def look(
        self,
        received: int = 0,
        *,
        sent: int = 0,
        known: int = 0,
        strangers: int = 0,
        number: int = 1,
        after_s: float = ONE_LOOK_S,
    ) -> list[int]:
        """Let something come over one connection and time pass; returns which connections are ended."""
        self.now_s += after_s
        old = self.connections[number]
        self.connections[number] = replace(
            old, received_bytes=old.received_bytes + received, sent_bytes=old.sent_bytes + sent
        )
        calls = {Peer(old.address, old.port): Calls(strangers, known)} if known or strangers else {}
        ended = self.book.look(self.now_s, list(self.connections.values()), calls)
        for connection in ended:
            del self.connections[connection.id]
        return [connection.id for connection in ended]

    def is_ended_by(self, received: int, looks: int, *, strangers: int = 0) -> bool:
        """Let so much come again and again; tells whether the connection is ended within so many looks."""
        return any(self.look(received, strangers=strangers) for _ in range(looks))

    def flood(self, number: int = 1, address: str = ADDRESS) -> None:
        """Connect and flood until the connection is ended."""
        self.connect(number, address)
        assert any(self.look(RULES.excess_bytes, number=number) for _ in range(3))


@pytest.fixture
def site() -> Site:
    made = Site()
    made.connect()
    return made


def test_bytes_without_calls_end_a_connection(site: Site) -> None:
    assert site.look(RULES.burst_bytes) == []
    for _ in range(4):
        assert site.look(10 * KIB) == []  # the call that explains it may be on its way
    assert site.is_ended_by(10 * KIB, looks=3)


def test_very_many_bytes_end_a_connection_at_once(site: Site) -> None:
    assert site.look(RULES.burst_bytes + RULES.excess_bytes + MIB) == [1]


def test_from_where_a_flood_came_lately_there_is_less_patience(site: Site) -> None:
    site.flood()
    site.connect(2)
    site.connect(3, "192.0.2.8")
    assert site.look(RULES.burst_bytes + 10 * KIB, number=2) == []
    assert site.look(RULES.burst_bytes + 10 * KIB, number=3) == [2]
    assert site.look(1, number=3) == []


def test_addresses_of_one_ipv6_customer_are_one(site: Site) -> None:
    for number in range(RULES.offences):
        assert site.book.barred == frozenset()
        site.flood(10 + number, f"2001:db8::{number + 1}")
    assert site.book.barred == {"2001:db8::"}
    for number in range(RULES.max_unknown_count + 1):
        site.connect(100 + number, f"2001:db8:0:1::{number:x}")
    assert site.look(known=1) == [100 + RULES.max_unknown_count]


def test_call_that_is_known_a_look_later_explains_what_came_before(site: Site) -> None:
    for _ in range(4):
        assert site.look(RULES.burst_bytes // 2) == []
    assert all(site.look(known=1) == [] for _ in range(3))


@pytest.mark.parametrize("look_s", [0.02, ONE_LOOK_S, 2.0])
def test_call_over_a_connection_that_no_look_has_seen_yet_explains_what_comes_over_it(look_s: float) -> None:
    site = Site()
    site.connect(2)
    site.flood()
    new = site.connect()
    del site.connections[1]  # accepted after the sockets were looked at
    early = {Peer(new.address, new.port): Calls(known_count=1)}
    assert site.book.look(site.now_s, list(site.connections.values()), early) == []
    site.connections[1] = new
    assert [site.look(4 * MIB, after_s=look_s) for _ in range(4)] == [[]] * 4
    assert site.is_ended_by(4 * MIB, looks=2)


def test_calls_over_connections_that_are_never_seen_are_forgotten(site: Site) -> None:
    gone = {Peer(ADDRESS, port): Calls(known_count=1) for port in range(1_000)}
    site.book.look(site.now_s, list(site.connections.values()), gone)
    for _ in range(10):
        assert site.look() == []
    site.connections[2] = Accepted(2, ADDRESS, 999, 0, 0)
    assert site.look(4 * MIB, number=2) == [2]


def test_largest_messages_of_somebody_known_may_come_one_after_the_other(site: Site) -> None:
    for _ in range(50):
        assert site.look(16 * MIB + 16 * KIB, known=1) == []


def test_calls_begun_together_may_bring_their_messages_later(site: Site) -> None:
    assert site.look(20 * KIB, known=20) == []
    assert [site.look(16 * MIB) for _ in range(20)] == [[]] * 20
    assert site.is_ended_by(MIB, looks=40)


def test_strangers_calls_explain_little(site: Site) -> None:
    for _ in range(100):
        assert site.look(16 * KIB, strangers=1) == []
    assert site.is_ended_by(MIB, looks=10, strangers=1)


def test_health_checks_and_pings_go_on_for_ever(site: Site) -> None:
    for _ in range(1_000):
        assert site.look(300, strangers=1, after_s=10.0) == []


def test_a_stream_that_is_only_read_opens_windows_and_is_not_ended(site: Site) -> None:
    assert site.look(2 * KIB, known=1) == []
    for _ in range(2_000):
        assert site.look(12 * KIB, sent=MIB) == []


def test_silence_is_not_saved_up(site: Site) -> None:
    site.look(KIB, known=1)
    for _ in range(100):
        site.look(after_s=3600.0)
    assert site.is_ended_by(MIB, looks=25)


def test_stranger_who_does_nothing_is_ended_in_the_end_and_not_counted_as_a_flood(site: Site) -> None:
    assert site.look(after_s=1.0) == []
    assert site.look(after_s=RULES.idle_s + 1) == [1]
    for number in range(2, 12):
        site.connect(number)
        site.look(number=number, after_s=1.0)
    site.now_s += RULES.idle_s
    site.look(number=11)
    assert (site.connections, site.book.barred) == ({}, frozenset())


def test_connection_over_which_somebody_known_called_may_be_silent(site: Site) -> None:
    site.look(KIB, known=1)
    assert all(site.look(after_s=3600.0) == [] for _ in range(10))


def test_newest_of_too_many_silent_connections_of_an_address_are_ended(site: Site) -> None:
    site.look(KIB, known=1)
    for number in range(2, RULES.max_unknown_count + 2):
        site.connect(number)
    site.connect(1_000, "192.0.2.8")
    assert site.look() == []
    for number in range(2_000, 2_003):
        site.connect(number)
    assert sorted(site.look()) == [2_000, 2_001, 2_002]


def test_address_that_floods_again_and_again_is_barred_for_a_while(site: Site) -> None:
    for number in range(2, 2 + RULES.offences):
        assert site.book.barred == frozenset()
        site.flood(number)
    assert site.book.barred == {ADDRESS}
    site.look(after_s=RULES.barred_s / 2)
    assert site.book.barred == {ADDRESS}
    site.look(after_s=RULES.barred_s)
    assert site.book.barred == frozenset()


def test_one_flood_now_and_then_bars_nobody(site: Site) -> None:
    for number in range(2, 12):
        site.flood(number)
        site.look(known=1, after_s=RULES.offence_s)
        assert site.book.barred == frozenset()


def test_only_as_many_are_barred_as_the_kernel_is_told(site: Site) -> None:
    for number in range(MAX_BARRED + 5):
        for _ in range(RULES.offences):
            site.flood(10 + number, f"198.51.100.{number}")
    assert len(site.book.barred) == MAX_BARRED


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("10.1.2.3", True),
        ("fd00::7", True),
        ("10.2.0.1", False),
        ("fe80::1", False),
    ],
)
def test_addresses_that_many_share_are_barred_for_a_moment_only(address: str, expected: bool) -> None:
    is_shared = shared_with([ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/64")])
    assert is_shared(address) is expected
    site = Site(FloodBook(is_shared=is_shared))
    for number in range(RULES.offences):
        site.flood(number, address)
    assert len(site.book.barred) == 1
    site.connect(10, "192.0.2.1")
    site.look(number=10, after_s=RULES.shared_barred_s)
    assert (site.book.barred == frozenset()) is expected


@dataclass
class FakeSockets:
    connections: list[Accepted]
    ended: list[int] = field(default_factory=list)
    barred: frozenset[str] = frozenset()

    def accepted(self) -> Sequence[Accepted]:
        """See `Sockets`."""
        return list(self.connections)

    def end(self, connection: Accepted) -> None:
        """See `Sockets`."""
        self.ended.append(connection.id)

    def bar(self, addresses: Collection[str]) -> None:
        """See `Sockets`."""
        self.barred = frozenset(addresses)


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.7", "ipv4:192.0.2.7:51234"),
        ("2001:db8::1", "ipv6:%5B2001:db8::1%5D:51234"),
        ("2001:db8::1", "ipv6:[2001:db8::1]:51234"),
        ("192.0.2.7", "ipv6:%5B::ffff:192.0.2.7%5D:51234"),
        ("fe80::1", "ipv6:%5Bfe80::1%25eth0%5D:51234"),
    ],
)
def test_calls_are_found_by_their_peer_however_it_is_written(address: str, peer: str) -> None:
    now_s = 0.0
    sockets = FakeSockets([])
    watch = FloodWatch(lambda _: sockets, now_s=lambda: now_s)
    for count in range(1, 20):
        now_s += ONE_LOOK_S
        sockets.connections = [Accepted(1, address, 51_234, count * 10 * MIB, 0)]
        watch.known_called(peer)
        watch.look(sockets)
    assert sockets.ended == []
    for count in range(20, 24):
        sockets.connections = [Accepted(1, address, 51_234, count * 500 * MIB, 0)]
        watch.known_called("unix:")
        watch.look(sockets)
    assert sockets.ended


def test_kernel_is_told_of_barred_addresses_once_and_when_they_are_barred_no_longer() -> None:
    now_s = 0.0
    sockets = FakeSockets([])
    watch = FloodWatch(lambda _: sockets, now_s=lambda: now_s)
    for number in range(RULES.offences):
        sockets.connections = [Accepted(number, ADDRESS, number, 50 * MIB, 0)]
        watch.look(sockets)
    assert sockets.ended == list(range(RULES.offences))
    assert sockets.barred == {ADDRESS}
    sockets.connections = []
    now_s += RULES.barred_s + 1
    watch.look(sockets)
    assert sockets.barred == frozenset()
