"""The command, run in this process against a control plane in a dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from controlplane.cli.main import cli
from controlplane.cli.session import Session
from tests.support.fake_http_api import FakeApi, Run


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def run(api: FakeApi, tmp_path: Path) -> Run:
    """Run the command with arguments; standard input, if given, is `input`."""

    def invoke(*arguments: str, **options: Any) -> Result:
        session = Session(transport=httpx.MockTransport(api.handle), pause=api.pauses_s.append)
        environment = {
            "LIMIQUANTIX_SERVER": None,
            "LIMIQUANTIX_OUTPUT": None,
            "LIMIQUANTIX_TOKEN": None,
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
        }
        result = CliRunner(env=environment).invoke(cli, list(arguments), obj=session, **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke
