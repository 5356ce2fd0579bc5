"""Which tests may run beside each other: those of one file share what it sets up, so they stay in one process.

So do all that start clusters or libvirt daemons. They share the machine's ports, and whoever looks for a free one finds
out too late that another took it: `limiquantix dev` for its daemons, libvirt for its VNC servers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")

_ON_REAL_PARTS = tuple(Path(__file__).parent / name for name in ("contract", "e2e", "integration"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put every test into the group that pytest-xdist keeps together (`--dist loadgroup`)."""
    for item in items:
        is_on_real_parts = any(item.path.is_relative_to(directory) for directory in _ON_REAL_PARTS)
        group = "real" if is_on_real_parts else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
