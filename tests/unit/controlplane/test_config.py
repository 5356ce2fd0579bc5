"""Configuration: file, environment and flags, and what an operator is told when one is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pydantic
import pytest
from click.testing import CliRunner, Result

from controlplane.app import main
from controlplane.config import ConfigFileUnusable, is_loopback, load_config
from controlplane.scheduler.scores import Strategy
from controlplane.state.factory import migrate
from tests.support.databases import fresh_sqlite, sqlite_url


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LIMIQUANTIX_"):
            monkeypatch.delenv(name)


def write(directory: Path, text: str) -> Path:
    path = directory / "controlplane.yaml"
    path.write_text(text)
    return path


def test_fault_11_defaults_listen_on_this_machine_only() -> None:
    config = load_config(None, {})

    assert is_loopback(config.http.listen_address)
    assert is_loopback(config.grpc.listen_address)
    assert config.http.cors_origins == []
    assert (config.scheduler.strategy, config.nodes.heartbeat_interval_s) == (Strategy.SPREAD, 30)


def test_flag_wins_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path,
        "http: {listen_address: '127.0.0.1:1'}\ngrpc: {listen_address: '127.0.0.1:1'}\n"
        "scheduler: {strategy: pack, reserved_cores: 3}\n",
    )
    monkeypatch.setenv("LIMIQUANTIX_GRPC__LISTEN_ADDRESS", "127.0.0.1:2")
    monkeypatch.setenv("LIMIQUANTIX_HTTP__LISTEN_ADDRESS", "127.0.0.1:2")
    monkeypatch.setenv("LIMIQUANTIX_SCHEDULER__RESERVED_CORES", "0")

    config = load_config(path, {"http": {"listen_address": "127.0.0.1:3"}})

    assert config.http.listen_address == "127.0.0.1:3"
    assert config.grpc.listen_address == "127.0.0.1:2"
    assert (config.scheduler.strategy, config.scheduler.reserved_cores) == (Strategy.PACK, 0)


def test_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileUnusable, match="does not exist"):
        load_config(tmp_path / "nothing.yaml", {})


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("htpp: {}", "htpp"),
        ("http: {listen: 'x:1'}", "http.listen"),
        ("scheduler: {cpu_overcommit_ratio: 0}", "scheduler.cpu_overcommit_ratio"),
        ("scheduler: {memory_overcommit_ratio: .nan}", "scheduler.memory_overcommit_ratio"),
        ("scheduler: {strategy: best}", "scheduler.strategy"),
        ("nodes: {heartbeat_interval_s: 0}", "nodes.heartbeat_interval_s"),
        ("nodes: {tls: {enabled: true}}", "nodes.tls"),
        ("security: {authority_cert_path: /no/such/file}", "security.authority_cert_path"),
        ("log: {level: loud}", "log.level"),
        ("log: {style: fancy}", "log.style"),
        ("http: 7", "http"),
    ],
)
def test_wrong_value_or_key_is_named(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        load_config(write(tmp_path, text), {})

    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [place]


@pytest.mark.parametrize("name", ["LIMIQUANTIX_HTTP__LISTEN", "LIMIQUANTIX_HTTP__TLS__ENABLED"])
def test_wrong_key_in_the_environment_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(pydantic.ValidationError):
        load_config(None, {})


@pytest.mark.parametrize(
    "address", ["8080", "localhost", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "127.0.0.1:-1", "h:80²", ""]
)
def test_bad_address_is_refused(address: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="host:port"):
        load_config(None, {"http": {"listen_address": address}})


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.0.2.1:1", False),
        ("example.org:1", False),
    ],
)
def test_loopback_addresses_are_told_from_others(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


def test_address_without_host_is_this_machine_only() -> None:
    assert load_config(None, {"http": {"listen_address": ":8080"}}).http.listen_address == "127.0.0.1:8080"


# -- the command


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def assert_plain_error(result: Result, *words: str) -> None:
    assert result.exit_code in {1, 2}
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.output


def test_command_with_missing_file_says_so(tmp_path: Path) -> None:
    assert_plain_error(run("--config", str(tmp_path / "no.yaml")), "no.yaml", "does not exist")


@pytest.mark.parametrize("text", ["http: [", "a: b: c", "\x00", "- a\n- b", "just words"])
def test_command_with_a_file_that_is_no_configuration_says_so(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    assert_plain_error(run("--config", str(path), "migrate"), "controlplane.yaml")


def test_command_with_wrong_key_names_it(tmp_path: Path) -> None:
    assert_plain_error(run("--config", str(write(tmp_path, "htpp: {}"))), "htpp")


@pytest.mark.parametrize("url", ["nonsense", "mysql://user:hunter2@host/x", "sqlite://", "postgresql://:hunter2@h/d"])
@pytest.mark.parametrize("arguments", [["migrate"], [], ["--migrate"]], ids=["migrate", "serve", "migrate and serve"])
def test_command_with_an_unsupported_database_says_so_without_the_password(url: str, arguments: list[str]) -> None:
    free = ["--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"]
    result = run("--database-url", url, *free, *arguments)

    assert_plain_error(result, "database")
    assert "hunter2" not in result.output


def test_command_without_a_migrated_database_names_the_command_to_run(tmp_path: Path) -> None:
    free = ["--http-listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0"]
    assert_plain_error(
        run("--database-url", sqlite_url(tmp_path / "none.db"), *free), "limiquantix-controlplane migrate"
    )


def test_migration_in_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_plain_error(run("--database-url", sqlite_url(tmp_path / "file" / "x.db"), "migrate"))


def test_migration_of_something_else_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database" * 1000)
    assert_plain_error(run("--database-url", sqlite_url(tmp_path / "x.db"), "migrate"), "database")


def test_migration_twice_is_fine(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "new" / "x.db")

    first, second = run("--database-url", url, "migrate"), run("--database-url", url, "migrate")

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.output == second.output == f"database is at revision {migrate(url)}\n"


def test_command_with_tls_files_that_are_missing_says_so(tmp_path: Path) -> None:
    url = fresh_sqlite(tmp_path)
    text = "security: {authority_cert_path: /no/cert, authority_key_path: /no/key}\n"
    path = write(tmp_path, text + f"http: {{listen_address: '127.0.0.1:0'}}\ndatabase: {{url: '{url}'}}\n")

    assert_plain_error(run("--config", str(path)), "/no/")
