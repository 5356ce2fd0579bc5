"""No program is started through a shell, or by a command line that somebody would have to part into words."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("controlplane", "nodedaemon", "hypervisor", "telemetry", "proto/limiquantix", "migrations", "benchmarks")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "_pb2" not in path.name)

_SHELLS = {"system", "popen", "getoutput", "getstatusoutput", "create_subprocess_shell", "subprocess_shell"}
_STARTS = {"run", "Popen", "call", "check_call", "check_output", "execv", "execve", "execvp", "execvpe", "posix_spawn"}


def _calls(source: str) -> Iterator[tuple[ast.Call, str, str]]:
    """Give each call with the name that is called, and what that is taken from."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute):
                yield node, function.attr, ast.unparse(function.value)
            elif isinstance(function, ast.Name):
                yield node, function.id, ""


def _faults(source: str) -> list[str]:
    found = []
    for call, name, owner in _calls(source):
        if name in _SHELLS and owner in {"os", "subprocess", "asyncio", "loop", ""}:
            found.append(f"line {call.lineno}: {name} goes through a shell")
        shells = [keyword.value for keyword in call.keywords if keyword.arg == "shell"]
        found.extend(f"line {call.lineno}: shell={ast.unparse(each)}" for each in shells if not _is_false(each))
        if name in _STARTS and owner in {"os", "subprocess"} and _is_text(call.args[0] if call.args else None):
            found.append(f"line {call.lineno}: {name} gets a text instead of a list of words")
    return found


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def _is_text(argument: ast.expr | None) -> bool:
    """Tell what is plainly text; mypy sees to the rest, for which `Popen` also takes a text."""
    if isinstance(argument, ast.BinOp):
        return _is_text(argument.left) or _is_text(argument.right)
    return isinstance(argument, ast.JoinedStr) or (
        isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    )


def _imported_names(source: str) -> list[str]:
    """Names by which subprocess's functions are called without saying so."""
    return [
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module in {"subprocess", "os"}
        for alias in node.names
        if alias.name in _STARTS | _SHELLS
    ]


def test_sources_are_found() -> None:
    assert any("subprocess" in path.read_text() for path in SOURCES)
    assert len(SOURCES) > 100


@pytest.mark.parametrize("package", PACKAGES)
def test_program_is_started_by_a_list_of_words(package: str) -> None:
    sources = [path for path in SOURCES if path.is_relative_to(ROOT / package)]
    found = {str(path.relative_to(ROOT)): _faults(path.read_text()) for path in sources}

    assert {name: faults for name, faults in found.items() if faults} == {}
    assert [str(path) for path in sources if _imported_names(path.read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run('ls ' + name)",
        "subprocess.run(f'ls {name}')",
        "subprocess.Popen(words, shell=True)",
        "subprocess.run(words, shell=flag)",
        "os.system(line)",
        "asyncio.create_subprocess_shell(line)",
        "subprocess.getoutput('ls')",
    ],
)
def test_check_sees_what_it_is_for(source: str) -> None:
    assert _faults(source) != []


def test_check_lets_lists_pass() -> None:
    assert _faults("subprocess.run(['ls', name], shell=False, check=True)") == []
