"""Which tests may run beside each other: those of one file share what it sets up, so they stay in one process.

So do all that start clusters or libvirt daemons. They share the machine's ports, and whoever looks for a free one finds
out too late that another took it: `limiquantix dev` for its daemons, libvirt for its VNC servers.
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")

# pytest-timeout raises in the main thread, which does nothing for a test whose main thread is stuck in C, waits for
# other threads as it ends, or hands the exception to a task nobody awaits. Past this, the process says where each of
# its threads is and ends; pytest-xdist names the test and goes on in a new process.
_STUCK_AFTER_S = 200.0
_REAL_STDERR = pytest.StashKey[int]()

_ON_REAL_PARTS = tuple(Path(__file__).parent / name for name in ("contract", "e2e", "integration"))


def pytest_configure(config: pytest.Config) -> None:
    """Keep the standard error of the process, which is pytest's own file while a test runs."""
    config.stash[_REAL_STDERR] = os.dup(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put every test into the group that pytest-xdist keeps together (`--dist loadgroup`)."""
    for item in items:
        is_on_real_parts = any(item.path.is_relative_to(directory) for directory in _ON_REAL_PARTS)
        group = "real" if is_on_real_parts else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


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
    faulthandler.dump_traceback_later(_STUCK_AFTER_S, exit=True, file=item.config.stash[_REAL_STDERR])
