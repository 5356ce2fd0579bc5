"""The document of this version: all services that people and programs call."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

import limiquantix.compute.v1
from controlplane.access.methods import METHODS, Audience, MethodRule
from controlplane.api.http.endpoints import version
from controlplane.api.http.openapi.document import build_document
from limiquantix.rpc.documentation import comments


def contract_document() -> dict[str, Any]:
    """Describe the whole contract; needs no server, and says the same as one of this version.

    Methods that hosts call are left out: they are for nobody who comes over HTTP.
    """
    audiences = {path: rule.audience for path, rule in METHODS.items()}
    return build_document(
        contract_services(),
        version(),
        comments(),
        public=[path for path, audience in audiences.items() if audience is Audience.ANYBODY],
        absent=[path for path, audience in audiences.items() if audience is Audience.HOSTS],
        needs={path: _always_needed(rule) for path, rule in METHODS.items()},
    )


def _always_needed(rule: MethodRule) -> list[str]:
    """List the permissions without which no call of a method passes, whatever it says."""
    return sorted({need.permission for need in rule.needs if not need.only_if and not need.unless})


def contract_services() -> Iterator[ServiceDescriptor]:
    """Find the services of `limiquantix.compute.v1`, ordered by their file's names."""
    for module in pkgutil.iter_modules(limiquantix.compute.v1.__path__):
        if module.name.endswith("_pb2"):
            loaded = importlib.import_module(f"{limiquantix.compute.v1.__name__}.{module.name}")
            yield from loaded.DESCRIPTOR.services_by_name.values()
