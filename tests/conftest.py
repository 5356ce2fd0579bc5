"""Which tests may run beside each other: those of one file share what it sets up, so they stay in one process.

So do all that start whole clusters by `limiquantix dev`. These look for free ports for their daemons, and whoever looks
for one finds out too late that another took it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")

# pytest-timeout raises in the main thread, which does nothing for a test whose main thread is stuck in C, waits for
# other threads as it ends, or hands the exception to a task nobody awaits. So much later, the process says where each
# of its threads is and ends; pytest-xdist names the test and goes on in a new process.
_STUCK_GRACE_S = 80.0
_REAL_STDERR = pytest.StashKey[int]()

_WITH_CLUSTERS = "tests/e2e/"
_OF_ONE_CASE = "tests/faults/test_every_boundary.py::"


_LONGEST_FIRST = (
    _WITH_CLUSTERS,
    "tests/integration/test_ha_real_hosts.py",
    "tests/faults/",
    "tests/integration/",
    "tests/simulation/",
    "tests/contract/",
)
"""What takes minutes in one piece begins first, and what takes milliseconds fills the end, when one process after the
other has nothing left to do."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep the standard error of the process, which is pytest's own file while a test runs."""
    config.stash[_REAL_STDERR] = os.dup(2)
    config.option.loadscopereorder = False  # by how many tests there are in a piece; see `_LONGEST_FIRST`
    # What a script starts in the background ignores Ctrl-C, and so do all that it starts: some tests press that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests in the order in which they are handed out."""
    items.sort(
        key=lambda item: next((n for n, start in enumerate(_LONGEST_FIRST) if item.nodeid.startswith(start)), 99)
    )


class Grouping(LoadScopeScheduling):  # type: ignore[misc] # it has no types
    """Which tests stay together.

    Not by marks (`--dist loadgroup`): pytest-xdist 3.8 writes groups into names that pytest 9.2 does not use, and so
    splits them without a word.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(_WITH_CLUSTERS):
            return "clusters"
        if nodeid.startswith(_OF_ONE_CASE):
            return nodeid.rpartition("-")[0]  # what follows is the database
        return nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Grouping:
    """Distribute by `Grouping`, whatever `--dist` says."""
    return Grouping(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Watch over the set-up and the test."""
    _end_the_process_when_stuck(item)
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """Watch over what the test leaves to be tidied up, for which it has its time anew."""
    _end_the_process_when_stuck(item)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _end_the_process_when_stuck(item: pytest.Item) -> None:
    mark = item.get_closest_marker("timeout")
    timeout_s = float(mark.args[0] if mark is not None else item.config.getini("timeout"))
    stderr = item.config.stash[_REAL_STDERR]
    faulthandler.dump_traceback_later(timeout_s + _STUCK_GRACE_S, exit=True, file=stderr)
