"""From settings to a coordinator."""

from __future__ import annotations

from controlplane.coordination.etcd.client import EtcdClient, EtcdTls
from controlplane.coordination.etcd.coordinator import EtcdCoordinator
from controlplane.coordination.interface import Coordinator
from controlplane.coordination.local import LocalCoordinator
from controlplane.coordination.settings import Backend, CoordinationSettings


def create_coordinator(settings: CoordinationSettings) -> Coordinator:
    """Make one, in the event loop that shall use it; connects to nothing yet.

    Raises:
        OSError: a TLS file cannot be read.
    """
    if settings.backend is Backend.LOCAL:
        return LocalCoordinator()
    files = settings.tls
    tls = None
    if settings.endpoints[0].startswith("https:"):
        tls = EtcdTls.from_files(files.ca_path, files.cert_path, files.key_path)
    return EtcdCoordinator(EtcdClient(settings.endpoints, tls), settings.prefix, settings.session_ttl_s)
