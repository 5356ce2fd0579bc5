"""The OpenAPI document: one POST for every RPC, the plain endpoints, errors and credentials.

Source: https://spec.openapis.org/oas/v3.1.0; https://connectrpc.com/docs/protocol
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from controlplane.access.methods import METRICS
from controlplane.api.callers import MAX_REQUEST_ID_LENGTH, OPERATION_ID, REQUEST_ID, WAIT
from controlplane.api.http.connect import CONNECT_CODES, IGNORED_FIELDS_HEADER
from controlplane.api.http.openapi.rules import Schema
from controlplane.api.http.openapi.schemas import Schemas
from limiquantix.errors import Code

_JSON: Final = "application/json"
_STREAM: Final = "application/connect+json"
_BEARER: Final = "bearer"
_STREAMED: Final = (
    "Answers are streamed: both bodies are Connect's envelopes, a byte of flags, four of length and the message; the "
    "last one has flag 2 and, if the call failed, the error."
)
_REFUSALS: Final[Mapping[str, str]] = {
    "400": "The request is wrong, or the thing's state does not allow it; `code` and details say which.",
    "401": "No credential, or none that is valid.",
    "403": "The caller may not do that.",
    "404": "There is no such thing, or none that the caller may see.",
    "409": "There is such a thing already, or somebody changed it meanwhile.",
    "413": "The body is too large.",
    "415": "The body's type is not one that is understood.",
    "429": "Too much at once, or a quota is used up; a RetryInfo detail says when to try again.",
    "501": "Documented, but not in this version.",
    "503": "Something that is needed does not answer now; try again.",
    "504": "Not done before the deadline. Changes go on; ask again with the same request id.",
    "default": "Anything else that went wrong.",
}
_PLAIN: Final[Mapping[str, tuple[str, str]]] = {
    "/health": (_JSON, "Say that the process answers."),
    "/healthz": (_JSON, "Say that the process answers."),
    "/live": (_JSON, "Say that the process answers."),
    "/ready": (_JSON, "Say which parts work; 503 when one that is needed does not."),
    "/api/v1/info": (_JSON, "Name the version and the services."),
    "/metrics": ("text/plain", "Give metrics in Prometheus' text format."),
    "/openapi.json": (_JSON, "Give this document."),
}


def build_document(
    services: Iterable[ServiceDescriptor],
    version: str,
    comments: Mapping[str, str],
    *,
    public: Collection[str] = (),
    absent: Collection[str] = (),
    needs: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Describe the services as they are served over HTTP.

    Args:
        comments: by full name, see `limiquantix.rpc.documentation`.
        public: methods, as "/package.Service/Method", that ask for no credential.
        absent: methods that are not served over HTTP, such as those that hosts call.
        needs: permissions that each method asks for, at the place of what the request names.
    """
    schemas = Schemas(comments)
    tags, paths = [], {}
    for service in services:
        methods = {f"/{service.full_name}/{method.name}": method for method in service.methods}
        served = {path: method for path, method in methods.items() if path not in absent}
        for path, method in served.items():
            credentials = [] if path in public else _credentials((needs or {}).get(path, ()))
            paths[path] = {"post": _operation(method, schemas, credentials)}
        if served:
            tags.append(schemas.described(service.full_name, {"name": service.full_name}))
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base",
        "info": {
            "title": "LimiQuantix",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Runs virtual machines on your own hosts. Every RPC is a POST of a JSON object.",
        },
        "tags": tags,
        "security": _credentials(),
        "paths": paths | {path: {"get": _plain(path, *facts)} for path, facts in _PLAIN.items()},
        "components": {
            "schemas": {**dict(sorted(schemas.components.items())), "connect.Error": _error_schema()},
            "responses": {code: _refusal(words) for code, words in _REFUSALS.items()},
            "parameters": _parameters(),
            "headers": _headers(),
            "securitySchemes": {
                _BEARER: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": (
                        "An access token, or an API key. What methods list beside it are the permissions that the "
                        "caller needs, where what the request names stands or above."
                    ),
                }
            },
        },
    }


def _credentials(permissions: Sequence[str] = ()) -> list[Schema]:
    return [{_BEARER: list(permissions)}]


def _operation(method: MethodDescriptor, schemas: Schemas, credentials: list[Schema]) -> Schema:
    content_type = _STREAM if method.server_streaming else _JSON
    success: Schema = {
        "description": "The answer.",
        "content": {content_type: {"schema": schemas.reference(method.output_type)}},
    }
    if not method.server_streaming:
        success["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in _headers()}
    operation: Schema = {
        "operationId": f"{method.containing_service.name}.{method.name}",
        "tags": [method.containing_service.full_name],
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in _parameters()],
        "requestBody": {"required": True, "content": {content_type: {"schema": schemas.reference(method.input_type)}}},
        "responses": {"200": success} | {code: {"$ref": f"#/components/responses/{code}"} for code in _REFUSALS},
    }
    if method.server_streaming:
        operation |= {"x-server-streaming": True, "description": _STREAMED}
    if credentials != _credentials():
        operation["security"] = credentials
    return schemas.described(method.full_name, operation)


def _plain(path: str, content_type: str, words: str) -> Schema:
    answer: Schema = {"description": "The answer.", "content": {content_type: {}}}
    responses: dict[str, Schema] = {"200": answer} | ({"503": answer} if path == "/ready" else {})
    name = path.strip("/").replace("/", ".").removesuffix(".json")
    security: list[Schema] = []
    if path == METRICS:
        security = [{}, *_credentials()]  # none on the machine itself
        responses |= {code: {"$ref": f"#/components/responses/{code}"} for code in ("401", "403", "429")}
    return {"operationId": f"plain.{name}", "summary": words, "security": security, "responses": responses}


def _refusal(words: str) -> Schema:
    return {
        "description": words,
        "content": {_JSON: {"schema": {"$ref": "#/components/schemas/connect.Error"}}},
    }


def _error_schema() -> Schema:
    detail: Schema = {
        "type": "object",
        "properties": {
            "type": {
                "type": "string",
                "description": "Full name of the detail's message, such as google.rpc.ErrorInfo.",
            },
            "value": {"type": "string", "description": "The message in base64, without padding."},
            "debug": {"type": "object", "description": "The message as JSON, to read."},
        },
        "required": ["type", "value"],
    }
    return {
        "type": "object",
        "description": (
            "How every refusal and failure looks. An ErrorInfo detail has the stable `reason`; a BadRequest detail "
            "every faulty field by its path."
        ),
        "properties": {
            "code": {"type": "string", "enum": [CONNECT_CODES[code].value for code in Code]},
            "message": {"type": "string"},
            "details": {"type": "array", "items": detail},
        },
        "required": ["code"],
    }


def _parameters() -> dict[str, Schema]:
    return {
        REQUEST_ID: {
            "name": REQUEST_ID,
            "in": "header",
            "description": "Calls with the same id and the same body are carried out once.",
            "schema": {"type": "string", "maxLength": MAX_REQUEST_ID_LENGTH, "pattern": "^[ -~]*$"},
        },
        WAIT: {
            "name": WAIT,
            "in": "header",
            "description": "`false` to be answered as soon as a change is accepted, before it is done.",
            "schema": {"type": "string", "enum": ["true", "false"]},
        },
        "connect-timeout-ms": {
            "name": "connect-timeout-ms",
            "in": "header",
            "description": "How long the caller waits.",
            "schema": {"type": "integer", "minimum": 1, "maximum": 9_999_999_999},
        },
    }


def _headers() -> dict[str, Schema]:
    return {
        OPERATION_ID: {"description": "The operation that carries out the change.", "schema": {"type": "string"}},
        IGNORED_FIELDS_HEADER: {
            "description": "Paths of fields in the request that nobody knows, separated by commas.",
            "schema": {"type": "string"},
        },
    }
