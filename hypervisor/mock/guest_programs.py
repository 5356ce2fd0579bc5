"""The programs of a simulated guest: few, and as their namesakes as far as anybody who tries the mock would look."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

RELEASE = "6.1.0-mock"
_NOT_FOUND = 127
_MAX_OUTPUT_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended, and how long it takes to."""

    exit_code: int = 0
    stdout: bytes = b""
    stderr: bytes = b""
    takes_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Inside:
    """What a program finds in its guest; `read` gives a file's contents or None."""

    hostname: str
    read: Callable[[str], bytes | None]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: str = "/"
    input: bytes = b""


def run(words: Sequence[str], inside: Inside) -> Ended:
    """Run a program given as its name and arguments."""
    name, *arguments = words
    program = _PROGRAMS.get(name.rpartition("/")[2])
    if program is None:
        return Ended(_NOT_FOUND, stderr=f"{name}: not found\n".encode())
    return program(arguments, inside)


def _echo(arguments: Sequence[str], _inside: Inside) -> Ended:
    return Ended(stdout=f"{' '.join(arguments)}\n".encode())


def _uname(arguments: Sequence[str], inside: Inside) -> Ended:
    facts = {"s": "Linux", "n": inside.hostname, "r": RELEASE, "v": "#1 SMP simulated", "m": "x86_64"}
    asked = {letter for argument in arguments for letter in argument.lstrip("-")} or {"s"}
    return Ended(stdout=f"{' '.join(text for key, text in facts.items() if key in asked or 'a' in asked)}\n".encode())


def _hostname(_arguments: Sequence[str], inside: Inside) -> Ended:
    return Ended(stdout=f"{inside.hostname}\n".encode())


def _cat(arguments: Sequence[str], inside: Inside) -> Ended:
    if not arguments:
        return Ended(stdout=inside.input)
    output, complaints = b"", b""
    for path in arguments:
        data = inside.read(path)
        if data is None:
            complaints += f"cat: {path}: No such file or directory\n".encode()
        else:
            output += data
    return Ended(1 if complaints else 0, output, complaints)


def _head(arguments: Sequence[str], inside: Inside) -> Ended:
    match arguments:
        case ["-c", count, "/dev/zero"] if count.isdigit():
            return Ended(stdout=bytes(min(int(count), _MAX_OUTPUT_BYTES)))
        case ["-c", count, path] if count.isdigit() and (data := inside.read(path)) is not None:
            return Ended(stdout=data[: int(count)])
    return Ended(1, stderr=b"head: no such file, or not -c COUNT FILE\n")


def _sleep(arguments: Sequence[str], _inside: Inside) -> Ended:
    try:
        return Ended(takes_s=sum(map(float, arguments)))
    except ValueError:
        return Ended(1, stderr=b"sleep: invalid number\n")


def _env(_arguments: Sequence[str], inside: Inside) -> Ended:
    return Ended(stdout="".join(f"{name}={value}\n" for name, value in inside.environment.items()).encode())


def _pwd(_arguments: Sequence[str], inside: Inside) -> Ended:
    return Ended(stdout=f"{inside.directory}\n".encode())


def _sh(arguments: Sequence[str], inside: Inside) -> Ended:
    """Run commands separated by ";": no more of a shell than "exit N" and ">&2"."""
    if len(arguments) != 2 or arguments[0] != "-c":
        return Ended(2, stderr=b"sh: only sh -c TEXT is simulated\n")
    exit_code, output, complaints, takes_s = 0, b"", b"", 0.0
    for command in arguments[1].split(";"):
        words = shlex.split(command)
        if not words:
            continue
        if words[0] == "exit":
            exit_code = int(words[1]) % 256 if len(words) > 1 and words[1].isdigit() else exit_code
            break
        is_to_stderr = words[-1] == ">&2"
        ended = run(words[:-1] if is_to_stderr else words, inside)
        exit_code, takes_s = ended.exit_code, takes_s + ended.takes_s
        complaints += ended.stderr + (ended.stdout if is_to_stderr else b"")
        output += b"" if is_to_stderr else ended.stdout
    return Ended(exit_code, output, complaints, takes_s)


_PROGRAMS: Mapping[str, Callable[[Sequence[str], Inside], Ended]] = {
    "echo": _echo,
    "uname": _uname,
    "hostname": _hostname,
    "cat": _cat,
    "head": _head,
    "sleep": _sleep,
    "env": _env,
    "pwd": _pwd,
    "sh": _sh,
    "true": lambda _arguments, _inside: Ended(),
    "false": lambda _arguments, _inside: Ended(1),
}
