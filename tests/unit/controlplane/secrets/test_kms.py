"""Keys wrapped by a command: what it is given, and every way in which it can fail."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from controlplane.secrets.key_file import read_or_make
from controlplane.secrets.kms import KmsKeys
from controlplane.secrets.wrapping import KeysUnusable

DATA_KEY = bytes(range(32))
GOOD = """
import base64, sys
action, key_id = sys.argv[-2:]
data = base64.b64decode(sys.stdin.read())
mask = (key_id.encode() * 32)[:32]
print(base64.b64encode(bytes(a ^ b for a, b in zip(data, mask))).decode())
"""


def kms(tmp_path: Path, program: str, limit_s: float = 30.0) -> KmsKeys:
    path = tmp_path / "kms.py"
    path.write_text(program)
    return KmsKeys([sys.executable, str(path), "--region", "here; touch /tmp/x"], limit_s)


async def test_command_wraps_and_unwraps(tmp_path: Path) -> None:
    keys = kms(tmp_path, GOOD)
    wrapped = await keys.wrap(DATA_KEY, "7")
    assert DATA_KEY not in wrapped
    assert keys.is_current(wrapped)
    assert await keys.unwrap(wrapped, "7") == DATA_KEY


async def test_what_a_file_wrapped_is_not_given_to_the_command(tmp_path: Path) -> None:
    wrapped = await read_or_make(tmp_path / "secret.key", may_make=True).wrap(DATA_KEY, "1")
    with pytest.raises(KeysUnusable, match="key file"):
        await kms(tmp_path, GOOD).unwrap(wrapped, "1")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; print('hush'); print('hush', file=sys.stderr); sys.exit(3)", "status 3"),
        ("print('hush?')", "did not print base64"),
        ("", "printed nothing"),
    ],
)
async def test_command_that_fails_says_so_without_its_own_words(tmp_path: Path, program: str, words: str) -> None:
    with pytest.raises(KeysUnusable, match=words) as refusal:
        await kms(tmp_path, program).wrap(DATA_KEY, "1")
    assert "hush" not in str(refusal.value)


async def test_command_that_hangs_is_ended(tmp_path: Path) -> None:
    began_s = time.monotonic()
    with pytest.raises(KeysUnusable, match=r"did not end within 0.5 s"):
        await kms(tmp_path, "import time; time.sleep(600)", limit_s=0.5).wrap(DATA_KEY, "1")
    assert time.monotonic() - began_s < 60


async def test_command_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeysUnusable, match="cannot be started"):
        await KmsKeys([str(tmp_path / "none")], 5.0).wrap(DATA_KEY, "1")
