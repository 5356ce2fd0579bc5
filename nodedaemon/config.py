"""Configuration of the node daemon: flags, over `LIMIQUANTIX_*` environment, over a YAML file, over these defaults.

The daemon listens on the loopback address until it is told another, where the documented system opens 0.0.0.0. Who
it is, whom it believes and where the control planes are, it learned when the host joined; see `nodedaemon.identity`.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from hypervisor.mock.host import DEFAULT_BRIDGES, DEFAULT_NETWORKS

DEFAULT_CONFIG_PATH = Path("/etc/limiquantix/node.yaml")
HOSTS_PORT = 8082
"""Where control planes take calls of hosts, which show a certificate, unless told otherwise."""
PEOPLE_PORT = 8081
"""Where they take calls of people, and of hosts that have no certificate yet."""
MAX_HEARTBEAT_INTERVAL_S = 3600
_ENV_PREFIX = "LIMIQUANTIX_"
_NESTED = "__"
_HOSTNAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"
_LABEL_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$"


class ConfigError(Exception):
    """The configuration cannot be used; the message names every faulty setting."""


def split_address(address: str) -> tuple[str, int]:
    """Split "host:port" or "[v6]:port"; ValueError says what is wrong."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"must be host:port with a port from 0 to 65535, not {address!r}")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"an IPv6 address needs brackets, [::1]:9090, not {address!r}")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """Join host and port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen_address(address: str) -> str:
    split_address(address)
    return address


def control_plane_addresses(urls: str, default_port: int) -> tuple[str, ...]:
    """Reduce URLs or addresses, separated by commas, to "host:port" each; ValueError says what is wrong."""
    if not urls.strip():
        return ()
    addresses = [_control_plane_address(url.strip(), default_port) for url in urls.split(",")]
    if not all(addresses):
        raise ValueError(f"names an empty address: {urls!r}")
    return tuple(dict.fromkeys(addresses))


def _hosts_addresses(urls: str) -> str:
    return ",".join(control_plane_addresses(urls, HOSTS_PORT))


def _control_plane_address(url: str, default_port: int) -> str:
    """Reduce a URL or address to "host:port"; the scheme is only there because people write one."""
    scheme, separator, rest = url.rpartition("://")
    if separator and scheme not in ("https", "grpcs"):
        raise ValueError(f"must be host:port or https://host:port, since hosts speak TLS only, not {url!r}")
    address = rest.rstrip("/")
    if not address:
        return ""
    if ":" not in address.rpartition("]")[2]:
        address = f"{address}:{default_port}"
    host, port = split_address(address)
    if not host or not port or "/" in host:
        raise ValueError(f"must name a host and a port, not {url!r}")
    return address


class LogLevel(enum.StrEnum):
    """How important a log line must be to be written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeSection(_Section):
    """This node. `hostname` "" asks the OS."""

    hostname: Annotated[str, Field(max_length=253, pattern=f"^$|{_HOSTNAME_PATTERN}")] = ""
    labels: Annotated[
        dict[Annotated[str, Field(pattern=_LABEL_PATTERN, max_length=128)], Annotated[str, Field(max_length=255)]],
        Field(max_length=64),
    ] = {}
    data_dir: Path = Path("/var/lib/limiquantix/node")
    """What the daemon itself remembers: its boot number, generations of commands, the mock's VMs, console logs."""
    boot_id_path: Path = Path("/proc/sys/kernel/random/boot_id")
    """A file that another boot of the host has other words in; simulated hosts have one of their own."""


class ServerSection(_Section):
    """Where the daemon listens; port 0 takes a free one.

    Metrics are served to whoever asks, in the clear: on the loopback address, unless `metrics_host` opens them wider.
    """

    listen_address: Annotated[str, AfterValidator(_listen_address)] = "127.0.0.1:9090"
    metrics_host: Annotated[str, Field(min_length=1, max_length=253)] = "127.0.0.1"
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9091
    advertise_address: Annotated[str, AfterValidator(lambda a: a and _listen_address(a))] = ""
    """What the control plane shall call instead of the address found, for hosts behind NAT; port 0 is the real one."""


_NetworkName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


class MockSection(_Section):
    """The host that the mock backend simulates; bridges and networks are those that it tells it has."""

    vcpu_count: Annotated[int, Field(ge=1, le=65536)] = 16
    memory_mib: Annotated[int, Field(ge=1, le=2**30)] = 65536
    boot_secs: Annotated[float, Field(ge=0, le=3600)] = 0.3
    shutdown_secs: Annotated[float, Field(ge=0, le=3600)] = 0.1
    bridges: Annotated[tuple[_NetworkName, ...], Field(max_length=64)] = DEFAULT_BRIDGES
    host_networks: Annotated[tuple[_NetworkName, ...], Field(max_length=64)] = DEFAULT_NETWORKS
    migration_mib_per_sec: Annotated[int, Field(ge=1, le=2**20)] = 1024
    """How fast VMs are sent to other simulated hosts."""


class HypervisorSection(_Section):
    """Which backend runs the VMs, and where their images are. `accelerator` auto tries KVM and falls back to TCG."""

    backend: Literal["mock", "libvirt", "cloudhypervisor"] = "libvirt"
    libvirt_uri: Annotated[str, Field(min_length=1)] = "qemu:///system"
    storage_path: Path = Path("/var/lib/limiquantix/images")
    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    mock: MockSection = MockSection()

    @model_validator(mode="after")
    def _check_backend(self) -> HypervisorSection:
        if self.backend == "cloudhypervisor":
            raise ValueError("backend cloudhypervisor is documented but not in this version; use libvirt or mock")
        return self


class ControlPlaneSection(_Section):
    """Where the control plane takes calls of hosts, and whether to register there.

    `address` takes the place of what the host was told when it joined. It may name several instances of one control
    plane, separated by commas; the next is tried when one fails.
    """

    address: Annotated[str, AfterValidator(_hosts_addresses)] = ""
    registration_enabled: bool = True
    heartbeat_interval_secs: Annotated[int, Field(ge=1, le=MAX_HEARTBEAT_INTERVAL_S)] = 30

    @property
    def addresses(self) -> tuple[str, ...]:
        """Each "host:port"."""
        return tuple(self.address.split(",")) if self.address else ()


class MigrationSection(_Section):
    """How hypervisors of other hosts reach this one's, and it theirs: what guests have in memory goes that way.

    `address` "" is the management IP. Below `pki_path`, which is what libvirt and QEMU see as /etc/pki, the daemon
    writes the certificates that the control plane issues; null leaves them to whoever brought others along. `uri` is
    taken as it is, in place of one made of these.
    """

    address: Annotated[str, Field(max_length=253, pattern=r"^[A-Za-z0-9.:_-]*$")] = ""
    tls: bool = True
    pki_path: Path | None = Path("/etc/pki")
    uri: Annotated[str, Field(max_length=2048, pattern=r"^$|^qemu\+(tls|tcp)://[^\s?#]+$")] = ""

    @model_validator(mode="after")
    def _check_encryption(self) -> MigrationSection:
        host = urlsplit(self.uri).hostname if self.uri else self.address
        if self.tls and self.uri.startswith("qemu+tcp:"):
            raise ValueError("migration.uri is in the clear; use qemu+tls, or set migration.tls to false")
        if not self.tls and (not host or not is_loopback(join_address(host, 0))):
            raise ValueError(
                "migration.tls may be off only for a loopback address: the memory of guests would cross "
                "the network in the clear"
            )
        return self

    def peer_uri(self, management_ip: str) -> str:
        """Say where other hosts reach this one's libvirt; "" if nothing is known."""
        address = self.address or management_ip
        if self.uri or not address:
            return self.uri
        return f"qemu+{'tls' if self.tls else 'tcp'}://{f'[{address}]' if ':' in address else address}/system"


class SelfFencingSection(_Section):
    """How this host ends its protected VMs when its lease ends.

    Attributes:
        kill_s: within which they are dead; the control plane counts on it, and its `ha.kill_s` must not be less.
        guard: who runs the guard: the daemon starts one that outlives it (spawn), something else does (external), or
            nobody (off), and the host is then not taken to fence itself.
        run_dir: where daemon and guard meet, on a tmpfs; null chooses one in /run by the data directory.
        watchdog_device: fed by the guard that the daemon starts, so that a host that cannot kill is reset; "" for none.
    """

    enabled: bool = True
    kill_s: Annotated[float, Field(ge=0.2, le=60)] = 1.0
    guard: Literal["spawn", "external", "off"] = "spawn"
    run_dir: Path | None = None
    watchdog_device: Annotated[str, Field(pattern=r"^$|^/")] = ""

    @model_validator(mode="after")
    def _check_watchdog(self) -> SelfFencingSection:
        if self.watchdog_device and self.guard != "spawn":
            raise ValueError("self_fencing.watchdog_device is for guard: spawn; give another guard its device itself")
        return self


class ShutdownSection(_Section):
    """What a shutdown or reboot of the machine gives its VMs; systemd's limits must not be shorter.

    Attributes:
        vm_stop_secs: for guests to shut down before their plug is pulled.
        migrate_secs: for VMs to be moved away, where the control plane's policy has them moved.
        marker_path: a file that says, where there is no systemd, that the machine goes down: "poweroff" or "reboot".
    """

    vm_stop_secs: Annotated[float, Field(ge=0, le=3600)] = 60.0
    migrate_secs: Annotated[float, Field(ge=0, le=86400)] = 600.0
    marker_path: Path | None = None


class LimitsSection(_Section):
    """Bounds of concurrent work."""

    concurrent_operations: Annotated[int, Field(ge=1, le=1024)] = 16
    queued_operations_per_vm: Annotated[int, Field(ge=1, le=1024)] = 16


class LogSection(_Section):
    """What is logged, and how."""

    level: LogLevel = LogLevel.INFO
    format: Literal["json", "console"] = "json"


class NodeConfig(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(env_prefix=_ENV_PREFIX, env_nested_delimiter=_NESTED, extra="forbid", frozen=True)

    node: NodeSection = NodeSection()
    server: ServerSection = ServerSection()
    hypervisor: HypervisorSection = HypervisorSection()
    control_plane: ControlPlaneSection = ControlPlaneSection()
    migration: MigrationSection = MigrationSection()
    self_fencing: SelfFencingSection = SelfFencingSection()
    shutdown: ShutdownSection = ShutdownSection()
    limits: LimitsSection = LimitsSection()
    log: LogSection = LogSection()


class _SectionEnvironment(EnvSettingsSource):
    """`LIMIQUANTIX_SECTION__NAME` only: `LIMIQUANTIX_CONTROL_PLANE` is the flag's variable, not a JSON section."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self.env_vars = {name: value for name, value in self.env_vars.items() if _NESTED in name}


def load_config(path: Path | None, flags: Mapping[str, Mapping[str, Any]]) -> NodeConfig:
    """Read the configuration. Blocks.

    Args:
        path: the file the user named, which must exist; None for the default one, which need not.
        flags: settings from the command line by section; they win.

    Raises:
        ConfigError: naming every fault at once.
    """
    file_values = _read_yaml(path)

    class FromFile(NodeConfig):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            from_file = InitSettingsSource(settings_cls, init_kwargs=file_values)
            return (init_settings, _SectionEnvironment(settings_cls), from_file)

    from_flags: dict[str, Any] = {name: dict(section) for name, section in flags.items()}
    try:
        return FromFile(**from_flags)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}".lstrip(": ") for fault in error.errors()
        )
        raise ConfigError(f"configuration: {faults}") from error


def _read_yaml(path: Path | None) -> dict[str, Any]:
    source = path or DEFAULT_CONFIG_PATH
    try:
        document = yaml.safe_load(source.read_text())
    except FileNotFoundError:
        if path is None:
            return {}
        raise ConfigError(f"configuration file {path} does not exist") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # e.g. a date in month 13
        raise ConfigError(f"configuration file {source} cannot be read: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"configuration file {source} must hold sections, not a {type(document).__name__}")
    return {str(name): section for name, section in document.items() if section is not None}


def is_loopback(address: str) -> bool:
    """Tell whether a listen address can be reached from this host only."""
    host, _ = split_address(address)
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
