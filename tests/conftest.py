"""Tests of one file run in one process, so that they share what the file sets up; those of `e2e` all in the same one.

Each of those starts a whole cluster, which looks for free ports and then has others bind them: two at once may want the
same.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_E2E = Path(__file__).parent / "e2e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put every test into the group that pytest-xdist keeps together (`--dist loadgroup`)."""
    for item in items:
        group = "e2e" if item.path.is_relative_to(_E2E) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
