"""Schema versions: a fresh database is made whole, an older one is refused until it was migrated."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext

from cvars.broker.database import METADATA, Database
from cvars.errors import CvarsError, ExitCode

HEAD: Final = "0001"


class SchemaMismatch(CvarsError):
    """The database has another schema than this version needs."""

    reason = "broker.schema"
    exit_code = ExitCode.OUTSIDE


def migrate(url: str) -> tuple[str | None, str]:
    """Bring the database to ``HEAD``: (version before, version now)."""
    database = Database(url)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("version_path_separator", "os")
    try:
        with database.write() as connection:
            before = MigrationContext.configure(connection).get_current_revision()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        return before, HEAD
    finally:
        database.close()


def prepare(database: Database) -> None:
    """Make a fresh database whole; refuse one of another version. Raises ``SchemaMismatch``."""
    with database.write() as connection:
        if not sa.inspect(connection).get_table_names():
            METADATA.create_all(connection)
            connection.execute(
                sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
            )
            connection.execute(sa.text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})
            return
        found = MigrationContext.configure(connection).get_current_revision()
    if found != HEAD:
        raise SchemaMismatch(
            f"the database has schema {found or 'none'}, this version needs {HEAD}",
            hint="cvars broker migrate --config …  (take a copy first)",
        )
