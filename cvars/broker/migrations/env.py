"""What alembic runs: on the connection that `cvars.broker.migrate` hands in."""

from alembic import context

from cvars.broker.database import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
