"""What Alembic runs to get a connection: the program's own, or for a developer the one of `-x url=...`."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from controlplane.state.factory import migration_engine
from controlplane.state.schema import metadata


def run_on(connection: Connection) -> None:
    """Run the wanted migrations in the connection's transaction."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        # SQLite cannot alter a column: Alembic copies the table instead.
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    """Find the connection and migrate."""
    given: Connection | None = context.config.attributes.get("connection")
    if given is not None:
        run_on(given)
        return
    url = context.get_x_argument(as_dictionary=True).get("url")
    if not isinstance(url, str):
        raise SystemExit("name the database: alembic -c migrations/alembic.ini -x url=sqlite:////tmp/draft.db ...")
    engine = migration_engine(url)
    try:
        with engine.begin() as connection:
            run_on(connection)
    finally:
        engine.dispose()


main()
