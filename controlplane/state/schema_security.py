"""Tables of who may call, what they may do, and what is kept of it; rules are those of `controlplane.state.schema`."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from controlplane.state.schema_base import JsonText, UtcMicroseconds, metadata

secrets = Table(
    "secrets",
    metadata,
    # Keys and the like, each sealed with a key that is not here; see `controlplane.secrets`.
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
)

audit_chains = Table(
    "audit_chains",
    metadata,
    # One for each process that wrote; see `controlplane.audit.chain`.
    Column("writer_id", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("forgotten_number", BigInteger, nullable=False),
    Column("forgotten_digest", Text, nullable=False),
    Column("seal", Text, nullable=False),
)

audit_records = Table(
    "audit_records",
    metadata,
    Column("id", Text, primary_key=True),
    # No foreign key: that a chain is missing is something to be told, not prevented here.
    Column("writer_id", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("begun_at", UtcMicroseconds, nullable=False),
    Column("method", Text, nullable=False),
    Column("principal_kind", Text, nullable=False),
    Column("principal_id", Text, nullable=False),
    Column("principal_name", Text, nullable=False),
    # Separated by commas.
    Column("resources", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("request_json", Text, nullable=False),
    Column("is_refusal", Boolean, nullable=False),
    Column("code", Integer, nullable=False),
    Column("message", Text, nullable=False),
    Column("call_count", BigInteger, nullable=False),
    # NULL until it ended; written once.
    Column("ended_at", UtcMicroseconds, nullable=True),
    Column("end_code", Integer, nullable=True),
    Column("end_message", Text, nullable=False),
    Column("end_digest", Text, nullable=False),
    UniqueConstraint("writer_id", "number"),
    Index(None, "begun_at", "id"),
    Index(None, "principal_id", "begun_at"),
)

authorities = Table(
    "authorities",
    metadata,
    # One row, of id 1, there from the start; empty until somebody made or brought an authority.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("cluster_id", Text, nullable=False),
    Column("certificate_pem", Text, nullable=False),
    Column("sealed_key", LargeBinary, nullable=False),
    Column("made_at", UtcMicroseconds, nullable=True),
    # Counts changes of which certificates are good: joins, revocations, hosts that are forgotten. Not renewals.
    Column("machines_revision", BigInteger, nullable=False, server_default="0"),
)

join_tokens = Table(
    "join_tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("expires_at", UtcMicroseconds, nullable=False),
    Column("hostname", Text, nullable=False),
    Column("node_id", Text, nullable=False),
    Column("labels", JsonText, nullable=False),
    Column("used_at", UtcMicroseconds, nullable=True),
    Column("used_by", Text, nullable=False),
    Column("revoked_at", UtcMicroseconds, nullable=True),
)

machines = Table(
    "machines",
    metadata,
    # No foreign key to nodes: a host joins before it registers.
    Column("node_id", Text, primary_key=True),
    Column("hostname", Text, nullable=False),
    Column("joined_at", UtcMicroseconds, nullable=False),
    Column("issued_at", UtcMicroseconds, nullable=False),
    Column("ends_at", UtcMicroseconds, nullable=False),
    Column("labels", JsonText, nullable=False),
    Column("refused_before", UtcMicroseconds, nullable=True),
    UniqueConstraint("hostname"),
)

departed_machines = Table(
    "departed_machines",
    metadata,
    # Hosts that were forgotten, for as long as something that they were given may still be shown to somebody.
    Column("node_id", Text, primary_key=True),
    Column("refused_before", UtcMicroseconds, nullable=False),
)

projects = Table(
    "projects",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    # 0 is any amount.
    Column("quota_vm_count", BigInteger, nullable=False),
    Column("quota_vcpus", BigInteger, nullable=False),
    Column("quota_memory_bytes", BigInteger, nullable=False),
    Column("quota_disk_gib", BigInteger, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("updated_at", UtcMicroseconds, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("name"),
    Index(None, "created_at", "id"),
)

folders = Table(
    "folders",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    # "" at the root of the project: of NULLs, a unique constraint would allow any number.
    Column("parent_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("updated_at", UtcMicroseconds, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("project_id", "parent_id", "name"),
    Index(None, "created_at", "id"),
)

roles = Table(
    "roles",
    metadata,
    # Those that are built in are not here.
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("permissions", JSON, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("created_by", Text, nullable=False),
    UniqueConstraint("name"),
)

role_bindings = Table(
    "role_bindings",
    metadata,
    Column("id", Text, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("subject_name", Text, nullable=False),
    Column("role_id", Text, nullable=False),
    # Both "" for the cluster.
    Column("project_id", Text, nullable=False),
    Column("folder_id", Text, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("created_by", Text, nullable=False),
    UniqueConstraint("subject", "role_id", "project_id", "folder_id"),
)

access_head = Table(
    "access_head",
    metadata,
    # One row, of id 1: its lock is the right to change projects, folders, roles and bindings, and every such change
    # counts it up, so that whoever keeps them in memory knows when to read them again.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
)


# -- people and programs

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    # Never given twice: records and roles name people by it, so a row stays when its user is deleted.
    Column("name", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    # "" for those who log in elsewhere.
    Column("password_hash", Text, nullable=False),
    # Both NULL for those who log in here.
    Column("issuer", Text, nullable=True),
    Column("issuer_subject", Text, nullable=True),
    Column("groups", JSON, nullable=False),
    Column("is_disabled", Boolean, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("password_changed_at", UtcMicroseconds, nullable=True),
    Column("deleted_at", UtcMicroseconds, nullable=True),
    Column("version", BigInteger, nullable=False),
    # Of `identity_head`, when it was changed last: processes read what is newer than what they know.
    Column("revision", BigInteger, nullable=False),
    UniqueConstraint("name"),
    UniqueConstraint("issuer", "issuer_subject"),
    Index(None, "created_at", "id"),
    Index(None, "revision"),
)

user_sessions = Table(
    "user_sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id"), nullable=False),
    Column("began_at", UtcMicroseconds, nullable=False),
    # When its last refresh token ends.
    Column("ends_at", UtcMicroseconds, nullable=False),
    Column("origin", Text, nullable=False),
    Column("revoked_at", UtcMicroseconds, nullable=True),
    Column("revoked_because", Text, nullable=False),
    Index(None, "user_id", "revoked_at"),
    Index(None, "revoked_at"),
    Index(None, "ends_at"),
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    # SHA-256. Those that were used stay as long as their session, since their second use gives a theft away; so do
    # issuers' ID tokens, each of which begins one session.
    Column("digest", LargeBinary, primary_key=True),
    Column("session_id", Text, ForeignKey("user_sessions.id", ondelete="CASCADE"), nullable=False),
    Column("ends_at", UtcMicroseconds, nullable=False),
    Column("used_at", UtcMicroseconds, nullable=True),
    Index(None, "session_id"),
)

signing_keys = Table(
    "signing_keys",
    metadata,
    # Counted up from 1: of two processes that make the next one at once, one gets it in.
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("signs_until", UtcMicroseconds, nullable=False),
    Column("verifies_until", UtcMicroseconds, nullable=False),
    UniqueConstraint("id"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner_id", Text, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("project_ids", JSON, nullable=False),
    Column("permissions", JSON, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("expires_at", UtcMicroseconds, nullable=False),
    Column("last_used_at", UtcMicroseconds, nullable=True),
    Column("revoked_at", UtcMicroseconds, nullable=True),
    # As that of users.
    Column("revision", BigInteger, nullable=False),
    Index(None, "owner_id", "created_at", "id"),
    Index(None, "created_at", "id"),
    Index(None, "revision"),
)

login_failures = Table(
    "login_failures",
    metadata,
    # What tries are counted of: an address, or the digest of a name.
    Column("key", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("last_at", UtcMicroseconds, nullable=False),
    Column("waits_until", UtcMicroseconds, nullable=False),
    Index(None, "last_at"),
)

identity_head = Table(
    "identity_head",
    metadata,
    # One row, of id 1: counted up by whatever changes who may call, so that processes see at once that something did.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
)
