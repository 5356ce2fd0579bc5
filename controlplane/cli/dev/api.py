"""The few API calls the development cluster makes of its own control plane, over the public HTTP API."""

from __future__ import annotations

import base64
import ssl
from typing import Any, Self

import httpx

CALL_TIMEOUT_S = 90.0


class ApiCallError(Exception):
    """A call was refused or got no answer; the text is the server's own."""


class Api:
    """A Connect/JSON client for one control plane; answers are the API's JSON as dictionaries."""

    def __init__(self, url: str, trust: ssl.SSLContext, auth: httpx.Auth) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=CALL_TIMEOUT_S, trust_env=False, verify=trust, auth=auth)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def call(self, service: str, method: str, **request: Any) -> dict[str, Any]:
        """Call `limiquantix.compute.v1.<service>/<method>`.

        Raises:
            ApiCallError: the server refused or cannot be reached.
        """
        try:
            answer = await self._client.post(f"/limiquantix.compute.v1.{service}/{method}", json=request)
            document: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ApiCallError(f"{service}/{method}: {error or type(error).__name__}") from error
        if answer.status_code != httpx.codes.OK:
            raise ApiCallError(f"{service}/{method}: {document.get('message', answer.status_code)}")
        return document

    async def is_ready(self) -> bool:
        """Whether the control plane answers and all its parts work."""
        try:
            answer = await self._client.get("/ready", timeout=2.0)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    async def nodes(self) -> list[dict[str, Any]]:
        """All nodes of a small cluster."""
        answer = await self.call("NodeService", "ListNodes", pageSize=1000)
        nodes: list[dict[str, Any]] = answer.get("nodes", [])
        return nodes

    async def vms(self) -> list[dict[str, Any]]:
        """All VMs of a small cluster."""
        answer = await self.call("VMService", "ListVMs", pageSize=1000)
        vms: list[dict[str, Any]] = answer.get("vms", [])
        return vms

    async def console_log(self, vm_id: str, offset: int) -> tuple[bytes, int]:
        """Read a VM's serial log from an offset: the bytes, and where to go on."""
        answer = await self.call("VMService", "GetConsoleLog", vmId=vm_id, offset=offset, maxBytes=2**18)
        return base64.b64decode(answer.get("data", "")), int(answer.get("nextOffset", 0))
