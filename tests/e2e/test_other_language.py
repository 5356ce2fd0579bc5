"""A client in another language, made from the published descriptor set alone, lists and starts a VM.

It calls over TLS, which it believes by the cluster's authority, with an API key.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.dev_cluster import DevCluster

SOURCE = Path(__file__).with_name("node_client")
DESCRIPTOR_SET = Path(__file__).parents[2] / "proto" / "limiquantix.binpb"


@pytest.fixture
def node_client(tmp_path: Path) -> Path:
    """The client with its libraries installed from the locked list; skips where there is no Node.js."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node.js and npm are not installed")
    directory = tmp_path / "client"
    shutil.copytree(SOURCE, directory)
    installed = subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund"],
        check=False,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "npm_config_update_notifier": "false"},
    )
    if installed.returncode != 0 and "ENOTFOUND" in installed.stderr:
        pytest.skip("the npm registry cannot be reached")
    assert installed.returncode == 0, installed.stderr
    return directory / "client.mjs"


def test_node_js_client_made_from_the_descriptor_set_lists_and_starts_a_vm(node_client: Path, tmp_path: Path) -> None:
    with DevCluster(tmp_path / "data", "--hypervisor", "mock", "--no-demo") as cluster:
        cluster.call("VMService/CreateVM", name="from-node", spec={"cpu": {"cores": 1}, "memory": {"sizeMib": 128}})
        ends_at = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        key = cluster.call("ApiKeyService/CreateApiKey", name="node", expiresAt=ends_at)["secret"]
        authority = cluster.data_dir / "ca.pem"
        node = shutil.which("node") or "node"
        ran = subprocess.run(
            [node, node_client, DESCRIPTOR_SET, cluster.grpc_address, authority, "from-node"],
            check=False,
            capture_output=True,
            text=True,
            timeout=200,
            env={**os.environ, "LIMIQUANTIX_TOKEN": key},
        )
        assert ran.returncode == 0, ran.stderr
        answer = json.loads(ran.stdout)
        assert answer["names"] == ["from-node"]
        assert answer["state"] == "RUNNING"
        assert answer["refused"]["code"] == "FAILED_PRECONDITION"
        assert "while it is RUNNING" in answer["refused"]["message"]
        assert answer["unknown"]["code"] == "UNAUTHENTICATED"
        assert cluster.state("from-node") == "RUNNING"
