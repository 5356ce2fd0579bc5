"""A small OpenID Connect issuer over HTTP on loopback: real keys, discovery, rotation, and the device flow."""

from __future__ import annotations

import functools
import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

CLIENT = "limiquantix-cli"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@dataclass
class Issuer:
    """What it is told to be; tests change it while it runs."""

    url: str = ""
    keys: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """Algorithm and private key, by key id; all of them are published."""
    discovery: dict[str, Any] = field(default_factory=dict)
    """Laid over the discovery document."""
    key_requests: int = 0
    body: bytes | None = None
    """Instead of the key set."""
    redirects_to: str = ""
    is_away: bool = False
    approves_after: int = 1
    """Polls of the device flow until the person has agreed."""
    polls: int = 0

    def add_key(self, algorithm: str = "RS256", bits: int = 2048) -> str:
        """Begin to use one more key."""
        private: Any
        match algorithm:
            case "RS256":
                private = generate_rsa_key(public_exponent=65537, key_size=bits)
            case "ES256":
                private = generate_private_key(SECP256R1())
            case _:
                private = Ed25519PrivateKey.generate()
        key_id = uuid.uuid4().hex
        self.keys[key_id] = (algorithm, private)
        return key_id

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of a token that is good; a change to None leaves one out."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.url,
            "sub": "248289761001",
            "aud": CLIENT,
            "iat": now,
            "exp": now + 300,
            "preferred_username": "alice",
            "name": "Alice Archer",
            "groups": ["operators"],
            "jti": uuid.uuid4().hex,
        }
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def token(self, key_id: str = "", *, header: dict[str, Any] | None = None, **changes: Any) -> str:
        """Make an ID token."""
        chosen = key_id or next(iter(self.keys))
        algorithm, private = self.keys[chosen]
        return jwt.encode(
            self.claims(**changes), private, algorithm=algorithm, headers={"kid": chosen, **(header or {})}
        )

    def document(self, path: str) -> dict[str, Any] | None:
        match path:
            case "/.well-known/openid-configuration":
                return {
                    "issuer": self.url,
                    "jwks_uri": f"{self.url}/keys",
                    "device_authorization_endpoint": f"{self.url}/device",
                    "token_endpoint": f"{self.url}/token",
                    **self.discovery,
                }
            case "/keys":
                self.key_requests += 1
                return {"keys": [_published(key_id, *key) for key_id, key in self.keys.items()]}
        return None

    def posted(self, path: str, form: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        if form.get("client_id") != [CLIENT]:
            return 400, {"error": "invalid_client"}
        if path == "/device":
            return 200, {
                "device_code": "the-device-code",
                "user_code": "WDJB-MJHT",
                "verification_uri": f"{self.url}/agree",
                "expires_in": 60,
                "interval": 1,
            }
        if form.get("device_code") != ["the-device-code"] or form.get("grant_type") != [DEVICE_GRANT]:
            return 400, {"error": "invalid_grant"}
        self.polls += 1
        if self.polls <= self.approves_after:
            return 400, {"error": "authorization_pending"}
        return 200, {"id_token": self.token(), "access_token": "of-no-use", "token_type": "Bearer"}


@functools.cache
def _first_key() -> Any:
    """Made once: it takes a third of a second."""
    return generate_rsa_key(public_exponent=65537, key_size=2048)


def _published(key_id: str, algorithm: str, private: Any) -> dict[str, Any]:
    encoder: Any = {"RS256": RSAAlgorithm, "ES256": ECAlgorithm}.get(algorithm, OKPAlgorithm)
    return {**encoder.to_jwk(private.public_key(), as_dict=True), "kid": key_id, "use": "sig", "alg": algorithm}


@contextmanager
def running_issuer() -> Iterator[Issuer]:
    """Serve an issuer with one RSA key until the end of the block."""
    issuer = Issuer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if issuer.redirects_to and self.path == "/keys":
                self.send_response(302)
                self.send_header("location", issuer.redirects_to)
                self.end_headers()
                return
            document = None if issuer.is_away else issuer.document(self.path)
            if document is None:
                self._answer(503 if issuer.is_away else 404, b"{}")
            elif issuer.body is not None and self.path == "/keys":
                self._answer(200, issuer.body)
            else:
                self._answer(200, json.dumps(document).encode())

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
            status, document = issuer.posted(self.path, form)
            self._answer(status, json.dumps(document).encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer.url = f"http://127.0.0.1:{server.server_port}"
    issuer.keys["first"] = ("RS256", _first_key())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
