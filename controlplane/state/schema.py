"""Tables of the control plane's database, in SQL that SQLite and PostgreSQL both understand.

No native enums, triggers, advisory locks or serial keys: what is here must also run on distributed databases that speak
PostgreSQL's protocol. Ids are made by the control plane.

The contract's messages (`VmSpec`, `NodeSpec`, `SystemInfo`) are the documents and are stored as serialized protobuf:
what a newer version put into them survives an older version's write, because protobuf keeps unknown fields. Columns
beside a document (`vcpus`, `memory_bytes`, `role_*`) are copies made in the same write, in `controlplane.state.records`
only, for what is filtered or summed in SQL; they are never read back into a record.

A change here needs a migration in the package `migrations`; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from controlplane.state import schema_security
from controlplane.state.schema_base import JsonText, SaturatedInteger, UtcMicroseconds

metadata = schema_security.users.metadata
"""Of all tables, those of `schema_security` too."""

nodes = Table(
    "nodes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hostname", Text, nullable=False),
    Column("management_ip", Text, nullable=False),
    Column("agent_endpoint", Text, nullable=False),
    Column("spec", LargeBinary, nullable=False),
    Column("system", LargeBinary, nullable=False),
    Column("annotations", JSON, nullable=False),
    Column("phase", Integer, nullable=False),
    Column("error_message", Text, nullable=False),
    Column("role_compute", Boolean, nullable=False),
    Column("role_storage", Boolean, nullable=False),
    Column("role_control_plane", Boolean, nullable=False),
    Column("capacity_vcpus", BigInteger, nullable=False),
    Column("capacity_memory_bytes", BigInteger, nullable=False),
    Column("allocated_vcpus", BigInteger, nullable=False),
    Column("allocated_memory_bytes", BigInteger, nullable=False),
    Column("usage_cpu_percent", Double, nullable=False),
    Column("usage_memory_used_bytes", SaturatedInteger, nullable=False),
    Column("usage_memory_total_bytes", SaturatedInteger, nullable=False),
    Column("usage_disk_used_bytes", SaturatedInteger, nullable=False),
    Column("usage_disk_total_bytes", SaturatedInteger, nullable=False),
    Column("usage_running_vm_count", BigInteger, nullable=False),
    Column("usage_load_1m", Double, nullable=False),
    Column("usage_load_5m", Double, nullable=False),
    Column("usage_load_15m", Double, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("updated_at", UtcMicroseconds, nullable=False),
    Column("last_heartbeat_at", UtcMicroseconds, nullable=True),
    # Of its newest fence, or one given before it was registered; commands to its daemon carry it.
    Column("fence_token", BigInteger, nullable=False, server_default="0"),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("hostname"),
    CheckConstraint("capacity_vcpus >= 0", name="capacity_vcpus_not_negative"),
    CheckConstraint("capacity_memory_bytes >= 0", name="capacity_memory_bytes_not_negative"),
    # Not `allocated <= capacity`: a host may come back smaller than what already runs on it.
    CheckConstraint("allocated_vcpus >= 0", name="allocated_vcpus_not_negative"),
    CheckConstraint("allocated_memory_bytes >= 0", name="allocated_memory_bytes_not_negative"),
    CheckConstraint("version >= 1", name="version_positive"),
    Index(None, "created_at", "id"),
    # Read twice a second by every process that grants leases.
    Index(None, "fence_token", "id"),
)

vms = Table(
    "vms",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project_id", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("node_id", Text, ForeignKey("nodes.id"), nullable=True),
    Column("power_state", Integer, nullable=False),
    Column("vcpus", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("description", Text, nullable=False),
    Column("folder_id", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("origin", Integer, nullable=False),
    Column("is_managed", Boolean, nullable=False),
    Column("error_message", Text, nullable=False),
    Column("lost_reason", Text, nullable=False),
    Column("reported_change_count", SaturatedInteger, nullable=False),
    Column("generation", BigInteger, nullable=False, server_default="1"),
    Column("wanted_state", Integer, nullable=False, server_default="0"),
    Column("sightings", JsonText, nullable=False, server_default="{}"),
    Column("restart_count", BigInteger, nullable=False, server_default="0"),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("updated_at", UtcMicroseconds, nullable=False),
    Column("state_changed_at", UtcMicroseconds, nullable=False),
    Column("last_seen_at", UtcMicroseconds, nullable=True),
    Column("version", BigInteger, nullable=False),
    # Last, because a row's long part is best skipped when the short columns are enough.
    Column("spec", LargeBinary, nullable=False),
    Column("details", LargeBinary, nullable=True),
    Column("linked_to", Text, nullable=True),
    # Whether its rules keep others out of more than its host.
    Column("reaches_far", Boolean, nullable=False, server_default=false()),
    # Whether its host knows that it ends with the host's lease.
    Column("is_protected", Boolean, nullable=False, server_default=false()),
    Column("disk_gib", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("project_id", "name"),
    CheckConstraint("vcpus >= 0", name="vcpus_not_negative"),
    CheckConstraint("memory_bytes >= 0", name="memory_bytes_not_negative"),
    CheckConstraint("version >= 1", name="version_positive"),
    Index(None, "created_at", "id"),
    Index(None, "project_id", "created_at", "id"),
    Index(None, "node_id", "created_at", "id"),
    Index(None, "power_state", "created_at", "id"),
    Index(None, "wanted_state", "power_state"),
    Index(None, "linked_to"),
    Index(None, "reaches_far", "project_id"),
    # What a project uses of its quota is summed from the index alone.
    Index(None, "project_id", "vcpus", "memory_bytes", "disk_gib"),
    Index(None, "folder_id"),
)


placement_turns = Table(
    "placement_turns",
    metadata,
    # As many rows as may take part at once; who holds all of them has the turn alone.
    Column("id", Integer, primary_key=True, autoincrement=False),
)

vm_macs = Table(
    "vm_macs",
    metadata,
    Column("mac_address", Text, primary_key=True),
    Column("vm_id", Text, ForeignKey("vms.id", ondelete="CASCADE"), nullable=False),
    Index(None, "vm_id"),
)


def _label_table(name: str, owner: Table, owner_column: str) -> Table:
    """Make the table of one kind's labels; they go with the row they belong to."""
    return Table(
        name,
        metadata,
        Column(owner_column, Text, ForeignKey(owner.c.id, ondelete="CASCADE"), primary_key=True),
        Column("key", Text, primary_key=True),
        Column("value", Text, nullable=False),
        Index(None, "key", "value", owner_column),
    )


vm_labels = _label_table("vm_labels", vms, "vm_id")
node_labels = _label_table("node_labels", nodes, "node_id")

operations = Table(
    "operations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("resource_type", Text, nullable=False),
    # No foreign key: the operation that deletes a VM outlives it.
    Column("resource_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("principal", Text, nullable=False),
    # NULL without one: of NULLs, a unique constraint allows any number.
    Column("request_id", Text, nullable=True),
    Column("request_digest", Text, nullable=False),
    Column("state", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("preempts", Boolean, nullable=False),
    Column("parameters", JSON, nullable=False),
    Column("steps", JSON, nullable=False),
    Column("fault", JSON(none_as_null=True), nullable=True),
    Column("response", LargeBinary, nullable=False),
    # Neither a foreign key here: a process that ended is forgotten, what it left is not.
    Column("owner_id", Text, nullable=False),
    Column("attempt_count", Integer, nullable=False),
    Column("cancel_requested", Text, nullable=False),
    Column("waiting_for", Text, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("started_at", UtcMicroseconds, nullable=True),
    Column("ended_at", UtcMicroseconds, nullable=True),
    Column("version", BigInteger, nullable=False),
    UniqueConstraint("principal", "request_id"),
    CheckConstraint("version >= 1", name="version_positive"),
    Index(None, "created_at", "id"),
    Index(None, "resource_id", "created_at", "id"),
    Index(None, "ended_at", "owner_id"),
    # The rule that one operation at a time works on a resource, held by the database itself. 2 and 3 are RUNNING and
    # UNDOING.
    Index(
        "ix_operations_one_active",
        "resource_id",
        unique=True,
        sqlite_where=text("state IN (2, 3)"),
        postgresql_where=text("state IN (2, 3)"),
    ),
)

replicas = Table(
    "replicas",
    metadata,
    Column("id", Text, primary_key=True),
    Column("hostname", Text, nullable=False),
    Column("started_at", UtcMicroseconds, nullable=False),
    Column("renewed_at", UtcMicroseconds, nullable=False),
    Column("renewal_count", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Text, primary_key=True),
    # Given soon after the commit, by one process at a time, so that readers see revisions without gaps.
    Column("revision", BigInteger, nullable=True),
    Column("recorded_at", UtcMicroseconds, nullable=False),
    # Order within the transaction that wrote it.
    Column("position", Integer, nullable=False),
    Column("resource_type", Text, nullable=False),
    Column("resource_id", Text, nullable=False),
    Column("resource_version", BigInteger, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("node_id", Text, nullable=False),
    Column("change", Integer, nullable=False),
    Column("type", Text, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("message", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("labels_before", JSON(none_as_null=True), nullable=True),
    Column("document", LargeBinary, nullable=False),
    UniqueConstraint("revision"),
    Index(None, "resource_id", "revision"),
    Index(None, "node_id", "revision"),
)

event_log_head = Table(
    "event_log_head",
    metadata,
    # One row, of id 1: its lock is the right to give revisions.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
    Column("compacted_revision", BigInteger, nullable=False),
    CheckConstraint("compacted_revision <= revision", name="compacted_revision_within_the_log"),
)

departed_vms = Table(
    "departed_vms",
    metadata,
    Column("vm_id", Text, primary_key=True),
    Column("node_id", Text, nullable=False),
    Column("is_kept", Boolean, nullable=False),
    Column("power_state", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("departed_at", UtcMicroseconds, nullable=False),
    Index(None, "node_id"),
)

vm_migrations = Table(
    "vm_migrations",
    metadata,
    # The last migration of each VM, until nothing of it is left to do. No foreign keys: it may outlive its VM, its
    # operation or a node, and is then settled by whoever finds it.
    Column("vm_id", Text, primary_key=True),
    Column("operation_id", Text, nullable=False),
    Column("source_node_id", Text, nullable=False),
    Column("target_node_id", Text, nullable=False),
    Column("copies_disks", Boolean, nullable=False),
    Column("ran", Boolean, nullable=False),
    Column("claimed_vcpus", BigInteger, nullable=False),
    Column("claimed_memory_bytes", BigInteger, nullable=False),
    Column("cost", Integer, nullable=False),
    Column("is_settled", Boolean, nullable=False),
    Column("asked_at", UtcMicroseconds, nullable=False),
    # NULL while it waits for its turn.
    Column("granted_at", UtcMicroseconds, nullable=True),
    CheckConstraint("cost >= 1", name="cost_positive"),
    Index(None, "source_node_id"),
    Index(None, "target_node_id"),
)

migration_gate = Table(
    "migration_gate",
    metadata,
    # One row, of id 1: its lock is the right to let a migration begin.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("turn", BigInteger, nullable=False),
)

recommendations = Table(
    "recommendations",
    metadata,
    # No foreign keys: it tells what was advised, whatever became of VM and nodes since.
    Column("id", Text, primary_key=True),
    Column("run_id", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("status", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("vm_id", Text, nullable=False),
    Column("vm_name", Text, nullable=False),
    Column("source_node_id", Text, nullable=False),
    Column("target_node_id", Text, nullable=False),
    Column("gain_percent", Double, nullable=False),
    Column("cost_memory_bytes", BigInteger, nullable=False),
    Column("cost_dirty_bytes_per_s", BigInteger, nullable=False),
    Column("cost_duration_ms", BigInteger, nullable=False),
    Column("source_load_before", Double, nullable=False),
    Column("source_load_after", Double, nullable=False),
    Column("target_load_before", Double, nullable=False),
    Column("target_load_after", Double, nullable=False),
    Column("created_at", UtcMicroseconds, nullable=False),
    Column("expires_at", UtcMicroseconds, nullable=False),
    Column("exchanged_with", Text, nullable=False),
    Column("is_due", Boolean, nullable=False),
    Column("decided_at", UtcMicroseconds, nullable=True),
    Column("decided_by", Text, nullable=False),
    Column("operation_id", Text, nullable=False),
    Column("status_message", Text, nullable=False),
    Column("ended_at", UtcMicroseconds, nullable=True),
    Column("version", BigInteger, nullable=False),
    Index(None, "created_at", "id"),
    Index(None, "status"),
)

balancing_runs = Table(
    "balancing_runs",
    metadata,
    # One row, of id 1: the last run. Who counts `turn` up from what was read may record a run.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("turn", BigInteger, nullable=False),
    Column("ran_at", UtcMicroseconds, nullable=True),
    Column("message", Text, nullable=False),
)

alerts = Table(
    "alerts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("resource_type", Text, nullable=False),
    Column("resource_id", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("raised_at", UtcMicroseconds, nullable=False),
    Column("last_seen_at", UtcMicroseconds, nullable=False),
    Column("resolved_at", UtcMicroseconds, nullable=True),
    Column("acknowledged_at", UtcMicroseconds, nullable=True),
    Column("acknowledged_by", Text, nullable=False),
    # Kind and resource while it is open, NULL (of which there may be many) once it is resolved.
    Column("open_key", Text, nullable=True),
    UniqueConstraint("open_key"),
    Index(None, "raised_at", "id"),
)

leadership = Table(
    "leadership",
    metadata,
    # One row, of id 1: whoever counts `epoch` up decides, and everything that is decided holds the row as it was.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", BigInteger, nullable=False),
    Column("leader_id", Text, nullable=False),
    Column("hostname", Text, nullable=False),
    Column("taken_at", UtcMicroseconds, nullable=True),
)

ha_settings = Table(
    "ha_settings",
    metadata,
    # One row, of id 1.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("is_armed", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("changed_by", Text, nullable=False),
    Column("changed_at", UtcMicroseconds, nullable=True),
    Column("version", BigInteger, nullable=False),
    Column("longest_wait_ms", BigInteger, nullable=False),
)

fences = Table(
    "fences",
    metadata,
    Column("id", Text, primary_key=True),
    # No foreign key: a proof outlives its node.
    Column("node_id", Text, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("state", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("opened_at", UtcMicroseconds, nullable=False),
    Column("heard_by", Text, nullable=False),
    Column("method", Integer, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("witness", Text, nullable=False),
    Column("proof_epoch", BigInteger, nullable=False),
    # NULL while there is no proof.
    Column("proven_at", UtcMicroseconds, nullable=True),
    Column("ended_at", UtcMicroseconds, nullable=True),
    Column("version", BigInteger, nullable=False),
    # The node while the fence is current, NULL (of which there may be many) once it is not.
    Column("current_node_id", Text, nullable=True),
    Column("asked_by", Text, nullable=False, server_default=""),
    Column("boot_id", Text, nullable=False, server_default=""),
    UniqueConstraint("token"),
    UniqueConstraint("current_node_id"),
    Index(None, "opened_at", "id"),
    Index(None, "node_id", "token"),
)

node_guards = Table(
    "node_guards",
    metadata,
    Column("node_id", Text, ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True),
    Column("ha_version", BigInteger, nullable=False),
    Column("can_self_fence", Boolean, nullable=False),
    Column("obstacle", Text, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("noted_at", UtcMicroseconds, nullable=False),
)
