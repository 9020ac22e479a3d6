"""The database's schema, step by step (alembic). Run by `cvars broker migrate`."""
