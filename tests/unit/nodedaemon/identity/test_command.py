"""`limiquantix-node join`: what it refuses before it tells anybody anything."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from controlplane.authority.certificates import Authority
from limiquantix.join_token import JoinTokenText
from nodedaemon.app import main
from tests.support.builders import make_id

NOBODY = "127.255.255.253"
"""An address of this machine where nothing listens."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "node.yaml"
    path.write_text(f"node:\n  data_dir: {tmp_path / 'data'}\n  hostname: host-1\n")
    return path


def run(config: Path, *arguments: str, **options: str) -> Result:
    return CliRunner().invoke(main, ["--config", str(config), "join", *arguments], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "lqj1.", "lqj1.!!!!", "eyJhbGciOi", "lqj1." + "A" * 40])
def test_text_that_is_no_token_is_refused(config: Path, text: str) -> None:
    result = run(config, text)
    assert result.exit_code == 1
    assert "join token" in result.output


def test_token_comes_from_standard_input_and_addresses_are_checked(config: Path) -> None:
    token = JoinTokenText(make_id(), "s" * 43, b"no certificate", ("127.0.0.1:1",)).encode()
    result = run(config, "-", "--control-plane", "ftp://x", input=token)
    assert result.exit_code == 1
    assert "must be host:port" in result.output


def test_address_without_a_port_is_that_of_the_port_for_people(config: Path) -> None:
    authority, _ = Authority.make(make_id(), datetime.now(UTC))
    der = ssl.PEM_cert_to_DER_cert(authority.certificate_pem.decode())
    token = JoinTokenText(make_id(), "s" * 43, der, ("127.0.0.1:1",)).encode()
    result = run(config, token, "--control-plane", NOBODY)
    assert result.exit_code == 1
    assert f"{NOBODY}:8081 cannot be reached" in result.output


def test_nothing_is_told_where_the_identity_could_not_be_kept(config: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    token = JoinTokenText(make_id(), "s" * 43, b"no certificate", ("127.0.0.1:1",)).encode()
    result = run(config, token)
    assert result.exit_code == 1
    assert str(tmp_path / "data") in result.output
    assert "s" * 43 not in result.output
