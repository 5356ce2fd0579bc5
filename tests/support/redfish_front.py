"""A power controller that speaks Redfish over TLS, of a host that is a network; see `power_fronts`.

Source: DMTF DSP0266, DSP2046 (ComputerSystem.Reset, PowerState).
"""

from __future__ import annotations

import argparse
import base64
import hmac
import json
import ssl
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from tests.support.namespaces import kill_all_in, processes_in

_SYSTEM: Final = "/redfish/v1/Systems/1"
_RESET: Final = f"{_SYSTEM}/Actions/ComputerSystem.Reset"


class _Handler(BaseHTTPRequestHandler):
    """Answers for one host."""

    namespace: str
    authorization: str
    disobeys: Path

    def do_GET(self) -> None:
        state = "On" if processes_in(self.namespace) else "Off"
        found: Mapping[str, Mapping[str, Any]] = {
            "/redfish/v1/Systems": {"Members": [{"@odata.id": _SYSTEM}]},
            _SYSTEM: {"PowerState": state, "Actions": {"#ComputerSystem.Reset": {"target": _RESET}}},
        }
        self._answer(found.get(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        if self.path != _RESET or body.get("ResetType") != "ForceOff":
            self._answer(None)
            return
        if self._is_known() and not self.disobeys.exists():
            kill_all_in(self.namespace)
        self._answer({})

    def _is_known(self) -> bool:
        return hmac.compare_digest(self.headers.get("Authorization", ""), self.authorization)

    def _answer(self, document: Mapping[str, Any] | None) -> None:
        status = HTTPStatus.OK if document is not None else HTTPStatus.NOT_FOUND
        if not self._is_known():
            status, document = HTTPStatus.UNAUTHORIZED, {}
        data = json.dumps(document or {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("certificate", "key", "namespace", "address", "port", "username", "password", "disobeys"):
        parser.add_argument(name)
    given = parser.parse_args()
    authorization = "Basic " + base64.b64encode(f"{given.username}:{given.password}".encode()).decode()
    own = {"namespace": given.namespace, "authorization": authorization, "disobeys": Path(given.disobeys)}
    server = ThreadingHTTPServer((given.address, int(given.port)), type("Handler", (_Handler,), own))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(given.certificate, given.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print("serves", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
