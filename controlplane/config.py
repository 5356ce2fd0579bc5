"""Configuration of the control plane: a YAML file, `LIMIQUANTIX_*` environment variables, command-line flags.

Later sources win. Unknown keys are errors: a misspelt safety setting must not be ignored. Nested settings are written
`LIMIQUANTIX_HTTP__LISTEN_ADDRESS` in the environment.
"""

from __future__ import annotations

import enum
import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from controlplane.access.recorded_reads import DEFAULT as DEFAULT_RECORDED_READS
from controlplane.access.recorded_reads import with_recorded
from controlplane.coordination.settings import CoordinationSettings
from controlplane.domain.recommendation import Automation
from controlplane.ha_settings import HighAvailabilitySettings
from controlplane.identity.settings import IdentitySettings
from controlplane.listen_address import check_address
from controlplane.scheduler.scores import Strategy
from controlplane.secrets.settings import SecretSettings
from controlplane.security_settings import SecuritySettings

DEFAULT_CONFIG_PATH = Path("/etc/limiquantix/controlplane.yaml")
DEFAULT_DATABASE_URL = "sqlite:////var/lib/limiquantix/controlplane/limiquantix.db"


LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")


class LogStyle(enum.StrEnum):
    """How log lines look."""

    JSON = "json"
    CONSOLE = "console"


def is_loopback(address: str) -> bool:
    """Whether "host:port" can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ListenSettings(_Section):
    """One listener, which speaks TLS; on this machine's loopback address by default."""

    listen_address: str

    _address = field_validator("listen_address")(check_address)


class HttpSettings(ListenSettings):
    """Connect/JSON API, health and metrics."""

    listen_address: str = "127.0.0.1:8080"
    cors_origins: list[str] = Field(default_factory=list)
    allowed_hosts: list[str] = Field(default_factory=list)
    """Names in a request's Host header; none given means this machine's loopback names on a loopback listener, and any
    elsewhere."""
    trusted_proxies: tuple[IPvAnyNetwork, ...] = ()
    """Networks of reverse proxies, which say in X-Forwarded-For whose calls they pass on: limits and the audit trail
    count the right-most address there that is in none of them. Without any the header is not looked at."""

    @property
    def accepted_hosts(self) -> list[str]:
        """The names to accept, "*" for any."""
        if self.allowed_hosts:
            return self.allowed_hosts
        return list(LOOPBACK_NAMES) if is_loopback(self.listen_address) else ["*"]


class GrpcSettings(ListenSettings):
    """The same services over gRPC."""

    listen_address: str = "127.0.0.1:8081"


class DatabaseSettings(_Section):
    """Where state lives; `pool_size` is how many connections to PostgreSQL one control plane opens at most."""

    url: str = Field(default=DEFAULT_DATABASE_URL, repr=False)  # may hold a password
    pool_size: Annotated[int, Field(ge=2, le=1000)] = 12


class SchedulerSettings(_Section):
    """Placement; ratios below 1 keep part of each host free."""

    strategy: Strategy = Strategy.SPREAD
    cpu_overcommit_ratio: Annotated[float, Field(gt=0, le=64)] = 2.0
    memory_overcommit_ratio: Annotated[float, Field(gt=0, le=16)] = 1.5
    reserved_cores: Annotated[int, Field(ge=0, le=1024)] = 1
    reserved_memory_mib: Annotated[int, Field(ge=0)] = 1024


class NodeSettings(_Section):
    """What is expected of node daemons, and how they are called."""

    heartbeat_interval_s: Annotated[int, Field(ge=1, le=3600)] = 30
    """What daemons are told without high availability; with it, `ha.heartbeat_interval_s` counts."""
    overload_cpu_percent: Annotated[float, Field(gt=0, le=100)] = 90.0
    overload_memory_percent: Annotated[float, Field(gt=0, le=100)] = 95.0
    overload_heartbeat_count: Annotated[int, Field(ge=1, le=1000)] = 3
    """How many heartbeats in a row must tell of a load above a limit, or well below both, to be believed."""


class OperationSettings(_Section):
    """How work on operations is shared between processes."""

    lease_s: Annotated[float, Field(ge=1, le=300)] = 10.0
    """How long a process may be silent before others take its operations over."""
    kept_days: Annotated[float, Field(ge=0.01, le=3650)] = 7.0
    """How long operations are kept after they ended, and request ids are remembered."""


class MigrationSettings(_Section):
    """Migration of VMs: how many at once, in units (1 with shared storage, 2 with disks), and how long to wait."""

    node_units: Annotated[int, Field(ge=1, le=1000)] = 2
    cluster_units: Annotated[int, Field(ge=1, le=100_000)] = 8
    patience_s: Annotated[float, Field(ge=1, le=86_400)] = 600.0
    """How long hosts that do not answer are asked where a VM is, before that is left to be settled when they do."""
    confirmation_s: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    """How long the source is asked whether it let go of a VM that runs at the target."""
    bandwidth_mbps: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """What the network is taken to carry, in forecasts, where hosts do not tell the speed of their cards."""


class DrsSettings(_Section):
    """Balancing: how even the load of nodes shall be, and what is done about it without being asked.

    Points are percent of a node. The planner's own documentation says what exactly each number is compared with.
    """

    enabled: bool = True
    interval_s: Annotated[float, Field(ge=1, le=86_400)] = 300.0
    automation: Automation = Automation.PARTIAL
    cpu_threshold_percent: Annotated[float, Field(gt=0, le=100)] = 80.0
    memory_threshold_percent: Annotated[float, Field(gt=0, le=100)] = 85.0
    min_gain_points: Annotated[float, Field(gt=0, le=100)] = 1.0
    min_difference_points: Annotated[float, Field(ge=0, le=100)] = 5.0
    hysteresis_points: Annotated[float, Field(ge=0, le=100)] = 5.0
    """How much larger a difference must be before anything is begun, so that noise moves nothing."""
    max_moves: Annotated[int, Field(ge=1, le=1000)] = 20
    max_concurrent_moves: Annotated[int, Field(ge=1, le=100)] = 2
    hold_s: Annotated[float, Field(ge=0, le=604_800)] = 3600.0
    """How long a VM stays where it is after it was moved, or after somebody refused to have it moved."""
    node_cool_down_s: Annotated[float, Field(ge=0, le=604_800)] = 300.0
    cluster_cool_down_s: Annotated[float, Field(ge=0, le=604_800)] = 0.0
    headroom_failures: Annotated[int, Field(ge=0, le=8)] | None = None
    """How many nodes may fail with room for their VMs elsewhere, which no move may take away."""
    copies_disks: bool = False
    """Whether VMs are moved too whose disks would have to be copied."""


class PowerSettings(_Section):
    """Controllers by which the power of hosts can be cut; none without a file."""

    devices_path: Path | None = None
    limit_s: Annotated[float, Field(ge=1, le=120)] = 10.0
    """How long cutting the power of one host may take."""


class EventSettings(_Section):
    """The log of events."""

    retention_days: Annotated[float, Field(ge=0.01, le=3650)] = 7.0
    """How long events are kept; a watch can continue from a revision that long."""


class AuditSettings(_Section):
    """The record of who changed what."""

    retention_days: Annotated[float, Field(ge=1, le=36_500)] = 400.0
    """How long it is kept: a year, and the month in which the year before is looked through."""
    recorded_reads: tuple[str, ...] = DEFAULT_RECORDED_READS
    """Reads that are recorded beside all changes: "Service/Method", "Service/*", or "*"."""

    @field_validator("recorded_reads")
    @classmethod
    def _are_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        with_recorded(value)
        return value


class LogSettings(_Section):
    """Logging to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    style: LogStyle = LogStyle.JSON


class ControlPlaneConfig(BaseSettings):
    """Everything the control plane can be told."""

    model_config = SettingsConfigDict(
        env_prefix="LIMIQUANTIX_", env_nested_delimiter="__", extra="forbid", frozen=True, yaml_file=None
    )

    http: HttpSettings = HttpSettings()
    grpc: GrpcSettings = GrpcSettings()
    database: DatabaseSettings = DatabaseSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    nodes: NodeSettings = NodeSettings()
    operations: OperationSettings = OperationSettings()
    migrations: MigrationSettings = MigrationSettings()
    drs: DrsSettings = DrsSettings()
    ha: HighAvailabilitySettings = HighAvailabilitySettings()
    coordination: CoordinationSettings = CoordinationSettings()
    power: PowerSettings = PowerSettings()
    events: EventSettings = EventSettings()
    security: SecuritySettings = SecuritySettings()
    secrets: SecretSettings = SecretSettings()
    identity: IdentitySettings = IdentitySettings()
    audit: AuditSettings = AuditSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags over environment over file."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


class ConfigFileUnusable(Exception):
    """The configuration file does not exist, cannot be read or is no YAML mapping; the message names it."""


def _require_mapping(path: Path) -> None:
    """Check what the settings source takes for granted, which would end in a traceback."""
    try:
        document = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date in month 13, brackets by the thousand
        raise ConfigFileUnusable(f"configuration file {path} is not YAML: {error}") from error
    except OSError as error:
        raise ConfigFileUnusable(f"configuration file {path} cannot be read: {error.strerror}") from error
    if document is not None and not (isinstance(document, dict) and all(isinstance(name, str) for name in document)):
        raise ConfigFileUnusable(f"configuration file {path} must hold sections such as `http:`")


def load_config(path: Path | None, overrides: dict[str, Any]) -> ControlPlaneConfig:
    """Read the configuration.

    Args:
        path: the file named on the command line; None takes the default path, which need not exist.
        overrides: values of command-line flags, nested as in the file.

    Raises:
        ConfigFileUnusable: the named file does not exist, or the file that is read holds no YAML mapping.
        pydantic.ValidationError: a value is wrong or a key unknown.
    """
    if path is not None and not path.is_file():
        raise ConfigFileUnusable(f"configuration file {path} does not exist")
    file = path or (DEFAULT_CONFIG_PATH if DEFAULT_CONFIG_PATH.is_file() else None)
    if file is not None:
        _require_mapping(file)

    class _FromFile(ControlPlaneConfig):
        model_config = SettingsConfigDict(yaml_file=file)

    return _FromFile(**overrides)
