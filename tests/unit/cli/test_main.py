from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import httpx
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from controlplane.cli.main import COMMANDS, LazyCommand, LazyGroup, cli
from controlplane.cli.session import Session
from tests.support.fake_http_api import FakeApi, Run, node, vm

HEAVY = ("grpc", "google.protobuf", "sqlalchemy", "httpx", "rich", "yaml", "pydantic", "orjson", "limiquantix")


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(found, (*path, name))


def _load(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


def test_help_loads_nothing_that_is_slow_to_load() -> None:
    program = (
        "import sys; from controlplane.cli.main import cli; cli.main(['--help'], standalone_mode=False); "
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "LOADED []" in done.stdout
    assert "Create, list, change" in done.stdout


def test_vm_command_loads_neither_grpc_nor_protobuf_nor_sqlalchemy() -> None:
    program = (
        "import sys; from controlplane.cli.main import cli\n"
        "try: cli.main(['--server', 'http://127.0.0.1:1', 'vm', 'list'])\n"
        "except SystemExit as end: print('STATUS', end.code)\n"
        "print('LOADED', [n for n in ('grpc', 'google.protobuf', 'sqlalchemy', 'pydantic') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "STATUS 3" in done.stdout
    assert "LOADED []" in done.stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "dev"])
def test_every_commands_help_has_an_example(name: str) -> None:
    for path, command in _commands(_load(name), (name,)):
        result = CliRunner().invoke(cli, [*path, "--help"])
        assert result.exit_code == 0
        assert "Example:" in result.stdout, path
        assert f"limiquantix {' '.join(path)}" in result.stdout, path
        assert not command.get_short_help_str(60).endswith("..."), path


def test_lazy_group_with_a_command_that_is_not_installed_still_lists_and_runs_the_others() -> None:
    group = LazyGroup(
        "limiquantix",
        lazy_commands={
            "gone": LazyCommand("controlplane.cli.no_such_module", "gone", "Is not here."),
            "version": COMMANDS["version"],
        },
    )
    assert "Is not here." in CliRunner().invoke(group, ["--help"]).stdout
    assert CliRunner().invoke(group, ["version", "--help"]).exit_code == 0
    result = CliRunner().invoke(group, ["gone"])
    assert result.exit_code == 1
    assert "'limiquantix gone' is not usable in this installation" in result.stderr


def test_unknown_command_is_a_usage_error(run: Run) -> None:
    assert run("vn", "list").exit_code == 2


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8080",
        "ftp://host",
        "http://",
        "http://user:secret@host",
        "http://h:99999",
        "http://h\n.x",
        "http://h/?q",
    ],
)
def test_server_that_is_no_plain_url_is_a_usage_error(api: FakeApi, run: Run, url: str) -> None:
    result = run("vm", "list", "--server", url)
    assert result.exit_code == 2
    assert "--server" in result.stderr
    assert api.requests == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_of_the_shell(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_LIMIQUANTIX_COMPLETE={shell}_complete" in result.stdout


def test_completion_of_a_vm_asks_the_server_for_names(api: FakeApi) -> None:

    api.have_vms(vm("web-1"), vm("web\n2"))
    session = Session(transport=httpx.MockTransport(api.handle))

    completer = ShellComplete(cli, {"obj": session}, "limiquantix", "_X")
    assert [item.value for item in completer.get_completions(["vm", "start"], "web")] == ["web-1"]
    assert [item.value for item in completer.get_completions([], "v")] == ["vm", "version"]


def test_completion_without_a_server_offers_nothing(api: FakeApi) -> None:

    session = Session(transport=httpx.MockTransport(api.handle))
    completer = ShellComplete(cli, {"obj": session}, "limiquantix", "_X")
    assert completer.get_completions(["node", "show"], "h") == []


def test_version_of_both_is_shown(api: FakeApi, run: Run) -> None:
    api.answers["info"] = lambda _: {"version": "9.8.7"}
    result = run("version")
    assert result.exit_code == 0
    assert "9.8.7" in result.stdout


def test_version_without_a_server_is_shown_all_the_same(run: Run) -> None:
    result = run("version")
    assert result.exit_code == 0
    assert "Command:" in result.stdout
    assert "unknown:" in result.stdout


def test_node_list_shows_what_is_promised(api: FakeApi, run: Run) -> None:
    api.answers["ListNodes"] = lambda _: {"nodes": [node("host-1")]}
    lines = run("node", "list", "--phase", "not-ready", "--label", "rack=r1").stdout.splitlines()
    assert lines[1].split("  ")[0] == "host-1"
    assert "3 of 30" in lines[1]
    assert "3 GiB of 64 GiB" in lines[1]
    assert api.request("ListNodes")["phases"] == ["NOT_READY"]
    assert api.request("ListNodes")["labels"] == {"rack": "r1"}


def test_node_show_by_host_name(api: FakeApi, run: Run) -> None:
    api.answers["ListNodes"] = lambda _: {"nodes": [node("host-1")]}
    api.answers["GetNode"] = lambda _: node("host-1")
    assert "Hypervisor:" in run("node", "show", "host-1").stdout
    assert run("node", "show", "host-2").exit_code == 1
