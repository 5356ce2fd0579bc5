"""Which reads are recorded, by the configuration."""

from __future__ import annotations

import pydantic
import pytest

from controlplane.access.methods import METHODS, Audience
from controlplane.access.recorded_reads import DEFAULT, ONE_RECORD_S, RecentReads, with_recorded
from controlplane.config import AuditSettings
from tests.support.access_scene import METHOD


def recorded(*wanted: str) -> set[str]:
    """Methods that are recorded only because they are named."""
    table = with_recorded(wanted)
    return {name.removeprefix(METHOD) for name in METHODS if table[name].is_audited and not METHODS[name].is_audited}


def test_by_default_reads_of_consoles_are() -> None:
    assert AuditSettings().recorded_reads == DEFAULT
    assert recorded(*DEFAULT) == {"VMService/GetConsoleLog"}
    always = {"GetConsole", "ReadGuestFile", "ExecuteScript", "SetGuestPassword"}
    assert all(METHODS[f"{METHOD}VMService/{name}"].is_audited for name in always)


def test_methods_services_and_all_can_be_named() -> None:
    assert recorded("VMService/GetVM", "UserService/*") == {
        *("VMService/GetVM", "UserService/GetUser", "UserService/ListUsers")
    }
    everything = with_recorded(["*"])
    assert {rule.audience for rule in everything.values() if not rule.is_audited} == {Audience.HOSTS, Audience.ANYBODY}
    assert recorded() == set()


@pytest.mark.parametrize("wanted", ["GetVM", "VMService/GetVn", "Service/*", "NodeService/UpdateHeartbeat", ""])
def test_what_is_no_method_of_people_is_refused_when_the_configuration_is_read(wanted: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="there is no method"):
        AuditSettings.model_validate({"recorded_reads": [wanted]})


def test_who_reads_again_and_again_is_recorded_once_a_minute() -> None:
    now_s = [100.0]
    reads = RecentReads(lambda: now_s[0])
    follower = ("user:alice", "GetConsoleLog", "vm/1")
    assert reads.is_news(*follower)
    assert not reads.is_news(*follower)
    assert reads.is_news("user:bob", *follower[1:])
    assert reads.is_news(*follower[:2], "vm/2")
    now_s[0] += ONE_RECORD_S
    assert reads.is_news(*follower)


def test_what_is_a_change_anyway_is_recorded_each_time() -> None:
    table = with_recorded(["VMService/*"])
    assert table[f"{METHOD}VMService/GetVM"].is_read
    assert not table[f"{METHOD}VMService/StopVM"].is_read
