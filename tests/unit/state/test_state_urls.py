"""Which database addresses are understood."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url

from controlplane.state.factory import create_store, migrate
from controlplane.state.postgresql import database_at
from controlplane.state.schema_base import REVISION


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("postgresql+psycopg2://user:secret@db/limiquantix", "'postgresql.psycopg2' are not supported"),
        ("postgresql://user:secret@db", "name of a database"),
        ("postgresql://user:secret@db/limiquantix?unknown=secret", "libpq knows"),
        ("postgresql://user:secret@db/limiquantix?port=secret", "libpq knows"),
        ("postgresql://user:secret@db/limiquantix?prepared_statements=secret", "yes or no"),
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


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://limiquantix@/limiquantix?host=/run/postgresql",
        "postgresql+psycopg://limiquantix:secret@db.example:5432/limiquantix?sslmode=verify-full",
        "postgresql://limiquantix@/limiquantix?host=db-a,db-b&target_session_attrs=read-write",
        "postgresql://limiquantix@/limiquantix?host=db-a:5432&host=db-b:5433&target_session_attrs=read-write",
        "postgresql://limiquantix@db/limiquantix?prepared_statements=no",
    ],
)
async def test_postgresql_address_is_accepted_and_connects_to_nothing(url: str) -> None:
    store = create_store(url)
    await store.close()
    assert "secret" not in repr(database_at(make_url(url)))


def test_relative_path_is_taken_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert migrate("sqlite:///data/limiquantix.db") == REVISION
    assert (tmp_path / "data" / "limiquantix.db").exists()
