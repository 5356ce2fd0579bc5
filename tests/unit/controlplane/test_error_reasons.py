"""Every reason an error can have is raised somewhere, and nothing is raised without one."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from limiquantix.errors import ApiError, Reason

ROOT = Path(__file__).resolve().parents[3]
SOURCES = [
    path
    for directory in ("proto/limiquantix", "controlplane", "nodedaemon")
    for path in (ROOT / directory).rglob("*.py")
    if not path.stem.endswith(("_pb2", "_pb2_grpc")) and path.name != "errors.py"
] + [ROOT / "controlplane/domain/errors.py", ROOT / "nodedaemon/errors.py"]

ERROR_NAMES = {error.__name__ for error in ApiError.__subclasses__()}


@functools.cache
def mentioned_reasons() -> set[str]:
    """Names X of every `Reason.X` in our sources."""
    found = set()
    for path in [*SOURCES, ROOT / "proto/limiquantix/errors.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason":
                found.add(node.attr)
    return found


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_reason_is_raised_somewhere(reason: Reason) -> None:
    assert reason.name in mentioned_reasons()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_errors_are_made_with_a_reason_of_the_list(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERROR_NAMES:
            reason = node.args[0] if node.args else None
            assert isinstance(reason, ast.Attribute | ast.Name | ast.Subscript | ast.Call), (
                f"{path}:{node.lineno} makes a {node.func.id} without a Reason"
            )
