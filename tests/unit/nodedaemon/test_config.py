"""Flags over environment over file over defaults, and every fault named."""

from __future__ import annotations

from pathlib import Path

import pytest

from nodedaemon.config import ConfigError, is_loopback, load_config


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIMIQUANTIX_CONTROL_PLANE", "LIMIQUANTIX_SERVER", "LIMIQUANTIX_SERVER__LISTEN_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_fault_11_defaults_listen_on_the_loopback_address_only() -> None:
    config = load_config(None, {})
    assert config.server.listen_address == "127.0.0.1:9090"
    assert config.server.metrics_port == 9091
    assert is_loopback(config.server.listen_address)
    assert config.hypervisor.libvirt_uri == "qemu:///system"
    assert config.control_plane.heartbeat_interval_secs == 30
    assert config.control_plane.registration_enabled


def test_flags_win_over_environment_and_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path / "n.yaml",
        "server: {listen_address: '127.0.0.1:1', metrics_port: 2}\nnode: {hostname: from-file, labels: {rack: r1}}\n",
    )
    monkeypatch.setenv("LIMIQUANTIX_SERVER__LISTEN_ADDRESS", "127.0.0.1:3")
    monkeypatch.setenv("LIMIQUANTIX_NODE__HOSTNAME", "from-env")
    monkeypatch.setenv("LIMIQUANTIX_CONTROL_PLANE", "https://elsewhere:1")
    monkeypatch.setenv("LIMIQUANTIX_SERVER", "https://for-the-cli")
    config = load_config(path, {"node": {"hostname": "from-flag"}})
    assert config.node.hostname == "from-flag"
    assert config.node.labels == {"rack": "r1"}
    assert config.server.listen_address == "127.0.0.1:3"
    assert config.server.metrics_port == 2


@pytest.mark.parametrize("text", ["", "# nothing\n", "node:\n"])
def test_empty_file_means_defaults(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path / "n.yaml", text), {}).node.hostname == ""


def test_every_fault_is_named(tmp_path: Path) -> None:
    text = """
nodes: {}
node: {hostname: 'a b', idd: x}
server: {listen_address: nowhere, metrics_port: 70000}
hypervisor: {backend: xen}
control_plane: {heartbeat_interval_secs: 0}
tls: {enabled: false}
"""
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "n.yaml", text), {})
    for name in (
        "nodes",
        "node.hostname",
        "node.idd",
        "server.listen_address",
        "server.metrics_port",
        "hypervisor.backend",
        "control_plane.heartbeat_interval_secs",
        "tls: Extra inputs",
    ):
        assert name in str(caught.value)


@pytest.mark.parametrize("text", ["- a list\n", "just text\n", "a: [\n"])
def test_file_that_is_no_mapping_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"n\.yaml"):
        load_config(write(tmp_path / "n.yaml", text), {})


def test_named_file_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml", {})


@pytest.mark.parametrize(("section", "name"), [("tls", "enabled"), ("node", "id")])
def test_nothing_says_who_the_host_is_or_opens_it_but_that_it_joined(section: str, name: str) -> None:
    with pytest.raises(ConfigError, match=section):
        load_config(None, {section: {name: "x"}})


def test_documented_backend_of_a_later_version_says_so() -> None:
    with pytest.raises(ConfigError, match="not in this version"):
        load_config(None, {"hypervisor": {"backend": "cloudhypervisor"}})


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://10.0.0.1:8080", "10.0.0.1:8080"),
        ("grpcs://cp.example/", "cp.example:8082"),
        ("cp.example", "cp.example:8082"),
        ("[2001:db8::1]:9", "[2001:db8::1]:9"),
        ("[2001:db8::1]", "[2001:db8::1]:8082"),
        ("https://cp.example", "cp.example:8082"),
    ],
)
def test_control_plane_url_becomes_an_address(url: str, address: str) -> None:
    assert load_config(None, {"control_plane": {"address": url}}).control_plane.address == address


@pytest.mark.parametrize(
    ("urls", "addresses"),
    [
        ("", ()),
        ("a:1", ("a:1",)),
        ("https://a:1, b ,[2001:db8::1]", ("a:1", "b:8082", "[2001:db8::1]:8082")),
        ("a:1,https://a:1/", ("a:1",)),
    ],
)
def test_several_control_plane_urls_become_addresses_each_once(urls: str, addresses: tuple[str, ...]) -> None:
    config = load_config(None, {"control_plane": {"address": urls}})
    assert config.control_plane.addresses == addresses


@pytest.mark.parametrize("urls", [",", "a:1,", "a:1,,b:2", "a:1,ftp://b:2", "a:1;b:2", "a:1,b:0"])
def test_list_of_control_planes_with_a_faulty_one_is_refused(urls: str) -> None:
    with pytest.raises(ConfigError, match=r"control_plane\.address"):
        load_config(None, {"control_plane": {"address": urls}})


@pytest.mark.parametrize("url", ["http://cp.example:8082", "grpc://cp.example", "a:1,http://b:1"])
def test_control_plane_url_that_asks_for_no_tls_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="hosts speak TLS only"):
        load_config(None, {"control_plane": {"address": url}})


@pytest.mark.parametrize("url", ["ftp://x:1", "x:", "x:99999", "https://x/path", "x:0", "::1:80"])
def test_control_plane_url_that_names_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"control_plane\.address"):
        load_config(None, {"control_plane": {"address": url}})


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:1", True), ("[::1]:1", True), ("localhost:1", True), ("10.0.0.1:1", False), ("[::]:1", False)],
)
def test_loopback_is_told_from_the_rest(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected
