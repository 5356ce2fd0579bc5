"""Redfish, by HTTP requests of our own.

Two resources and one action are all that is needed of it. The Python library (sushy) blocks, retries on its own terms
and keeps sessions; a request of an asynchronous client ends when its deadline says so.

Source: DMTF DSP0266 (Redfish specification), DSP2046 (ComputerSystem.Reset, PowerState).
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any

import httpx

from controlplane.power.agent import AgentFailed, PowerReading
from controlplane.power.devices import RedfishDevice

ATTEMPT_LIMIT_S = 4.0
"""Of connecting, and of each wait for bytes: leaves time for a second attempt when one was lost."""

SYSTEMS_PATH = "/redfish/v1/Systems"


@dataclass(frozen=True, slots=True)
class RedfishAgent:
    """The controller of one host. `transport` is for tests."""

    device: RedfishDevice
    transport: httpx.AsyncBaseTransport | None = None

    @property
    def kind(self) -> str:
        """The protocol."""
        return "redfish"

    @property
    def address(self) -> str:
        """Its URL."""
        return self.device.address

    async def switch_off(self) -> str:
        """Command ForceOff, which asks no guest."""
        async with self._client() as client:
            path, system = await self._system(client)
            target = f"{path}/Actions/ComputerSystem.Reset"
            actions = system.get("Actions")
            reset = actions.get("#ComputerSystem.Reset") if isinstance(actions, dict) else None
            if isinstance(reset, dict) and "target" in reset:
                target = _own_path(reset["target"])
            await _ask(client, "POST", target, {"ResetType": "ForceOff"})
        return "ForceOff accepted"

    async def read(self) -> PowerReading:
        """Ask for PowerState."""
        async with self._client() as client:
            _, system = await self._system(client)
        state = system.get("PowerState")
        if not isinstance(state, str):
            raise AgentFailed("the system says no PowerState")
        return PowerReading(state == "Off", f"PowerState {state[:32]}")

    async def _system(self, client: httpx.AsyncClient) -> tuple[str, dict[str, Any]]:
        if self.device.system_id:
            path = f"{SYSTEMS_PATH}/{self.device.system_id}"
        else:
            members = (await _ask(client, "GET", SYSTEMS_PATH)).get("Members")
            if not isinstance(members, list) or len(members) != 1 or not isinstance(members[0], dict):
                count = len(members) if isinstance(members, list) else "no"
                raise AgentFailed(f"it has {count} systems instead of one: configure system_id", is_final=True)
            path = _own_path(members[0].get("@odata.id"))
        return path, await _ask(client, "GET", path)

    def _client(self) -> httpx.AsyncClient:
        """Return a client that sends the password to this address only: no proxy of the environment, no redirects."""
        return httpx.AsyncClient(
            base_url=self.device.address,
            auth=httpx.BasicAuth(self.device.username, self.device.password()) if self.device.username else None,
            verify=_tls(self.device),
            timeout=ATTEMPT_LIMIT_S,
            transport=self.transport,
            trust_env=False,
            follow_redirects=False,
        )


def _tls(device: RedfishDevice) -> ssl.SSLContext | bool:
    if not device.verify_tls:
        return False
    if device.ca_path is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(device.ca_path))
    except (OSError, ssl.SSLError) as error:
        raise AgentFailed(f"ca_path {device.ca_path} is no usable PEM file: {error.strerror}", is_final=True) from error


async def _ask(client: httpx.AsyncClient, method: str, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
    """Send one request and return the object in its answer; {} if there is none.

    Raises:
        AgentFailed: no answer, or none of success.
    """
    what = f"{method} {path}"
    try:
        response = await client.request(method, path, json=body)
    except httpx.TimeoutException as error:
        raise AgentFailed(f"{what}: no answer within {ATTEMPT_LIMIT_S:g} s") from error
    except httpx.HTTPError as error:
        raise AgentFailed(f"{what}: {str(error) or type(error).__name__}") from error
    if response.status_code in (401, 403):
        raise AgentFailed(f"{what}: status {response.status_code}, check username and password", is_final=True)
    if not response.is_success:
        raise AgentFailed(f"{what}: status {response.status_code}")
    if method == "POST":
        return {}
    try:
        document = response.json()
    except ValueError as error:
        raise AgentFailed(f"{what}: the answer is not JSON") from error
    if not isinstance(document, dict):
        raise AgentFailed(f"{what}: the answer is no JSON object")
    return document


def _own_path(value: object) -> str:
    """Check that a link stays on the controller: the password goes with each request."""
    if not isinstance(value, str) or not value.startswith("/redfish/"):
        raise AgentFailed("the controller gave a link that is none of its own")
    return value.rstrip("/")
