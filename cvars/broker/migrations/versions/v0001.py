"""The first schema: anchor records, history, keys, resources, policies, sessions."""

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "vms",
        sa.Column("vm_id", sa.String(128), primary_key=True),
        sa.Column("store_id", sa.LargeBinary(16), nullable=False),
        sa.Column("policy", sa.String(128)),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("thawed", sa.String(16)),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("counter", sa.BigInteger, nullable=False),
        sa.Column("root", sa.LargeBinary(32), nullable=False),
        sa.Column("from_counter", sa.BigInteger, nullable=False),
        sa.Column("from_root", sa.LargeBinary(32), nullable=False),
        sa.Column("advance_epoch", sa.BigInteger, nullable=False),
        sa.Column("base_counter", sa.BigInteger, nullable=False),
        sa.Column("base_root", sa.LargeBinary(32), nullable=False),
        sa.Column("ring_bytes", sa.BigInteger, nullable=False),
        sa.Column("ring_from", sa.BigInteger, nullable=False),
        sa.Column("key_version", sa.BigInteger, nullable=False),
        sa.Column("key_old", sa.BigInteger),
        sa.Column("key_written_epoch", sa.BigInteger),
        sa.Column("floor_format", sa.Integer, nullable=False),
        sa.Column("floor_suites", sa.String(32), nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("lease_holder", sa.String(64)),
        sa.Column("lease_instance", sa.String(64)),
        sa.Column("lease_expires", sa.Float(53)),
        sa.Column("acquires", sa.BigInteger, nullable=False),
        sa.Column("provision_epoch", sa.BigInteger, nullable=False),
        sa.Column("identity", sa.Text),
        sa.Column("history", sa.LargeBinary(32), nullable=False),
    )
    op.create_table(
        "history",
        sa.Column("vm_id", sa.String(128), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("entry", sa.Text, nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("escrow", sa.LargeBinary),
        sa.Column("escrow_bytes", sa.Integer, nullable=False),
        sa.Column("start_counter", sa.BigInteger),
        sa.Column("start_root", sa.LargeBinary(32)),
        sa.Column("key_version", sa.BigInteger),
    )
    op.create_table(
        "vm_keys",
        sa.Column("vm_id", sa.String(128), primary_key=True),
        sa.Column("key_version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "resources",
        sa.Column("path", sa.String(400), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("policy_digest", sa.String(64), nullable=False),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "policies",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_table(
        "reference_values",
        sa.Column("name", sa.String(256), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "uses",
        sa.Column("policy", sa.String(128), primary_key=True),
        sa.Column("vm_id", sa.String(128), primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "sessions",
        sa.Column("id_hash", sa.String(64), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("expires", sa.Float(53), nullable=False, index=True),
        sa.Column("source", sa.String(64), nullable=False, index=True),
        sa.Column("tee", sa.String(16), nullable=False),
        sa.Column("nonce_hash", sa.String(64), nullable=False),
        sa.Column("sealed", sa.LargeBinary),
        sa.Column("channel", sa.LargeBinary),
        sa.Column("channel_vm", sa.String(128)),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger),
        sa.Column("key_versions", sa.String(64), nullable=False),
    )
