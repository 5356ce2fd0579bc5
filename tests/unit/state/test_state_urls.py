"""Which database addresses are understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.state.factory import create_store, migrate
from controlplane.state.schema import REVISION


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("postgresql://user:secret@db/limiquantix", "'postgresql' are not supported"),
        ("mysql://user:secret@db/limiquantix", "'mysql' are not supported"),
        ("sqlite+aiosqlite:///secret.db", "not supported"),
        ("sqlite://secret/limiquantix.db", "no host"),
        ("sqlite:///limiquantix.db?key=secret", "no parameters"),
        ("sqlite://", "path of a file"),
        ("sqlite:///:memory:", "path of a file"),
        ("sqlite:///file:secret?mode=memory", "no parameters"),
        ("/var/lib/secret.db", "not a URL"),
        ("postgresql://user:secret@db:port/limiquantix", "not a URL"),
        ("", "not a URL"),
    ],
)
def test_unusable_address_is_refused_with_what_is_supported_and_not_repeated(url: str, complaint: str) -> None:
    for use in (create_store, migrate):
        with pytest.raises(ValueError, match=complaint) as refusal:
            use(url)
        assert "sqlite:////absolute/path.db" in str(refusal.value)
        assert "secret" not in str(refusal.value)
        assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


def test_relative_path_is_taken_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert migrate("sqlite:///data/limiquantix.db") == REVISION
    assert (tmp_path / "data" / "limiquantix.db").exists()
