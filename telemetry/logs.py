"""One log stream a process: structlog and the standard library's loggers meet in one handler on standard error.

JSON lines are for machines (one object a line: timestamp, level, logger, event and the facts given), the console form
for people.
"""

from __future__ import annotations

import enum
import logging
import sys
from typing import Any, TextIO

import orjson
import structlog

LEVELS = ("debug", "info", "warning", "error")


REDACTED = "[secret]"
SECRET_NAMES = (
    "password",
    "passphrase",
    "secret",
    "token",
    "authorization",
    "cookie",
    "private_key",
    "api_key",
    "user_data",
    "meta_data",
    "vendor_data",
    "network_config",
    "unattend_xml",
    "product_key",
)
"""Ends of names of facts that are never logged."""


class LogFormat(enum.Enum):
    """How a log line looks."""

    JSON = "json"
    CONSOLE = "console"


def configure_logging(level: str, log_format: LogFormat, stream: TextIO | None = None) -> None:
    """Route every logger of this process to one stream; the call before is undone.

    Args:
        level: one of `LEVELS`; less important lines are dropped.
        stream: standard error by default.
    """
    if level not in LEVELS:
        raise ValueError(f"log level must be one of {', '.join(LEVELS)}, not {level!r}")
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        _without_secrets,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(log_format, target)],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(max(root.level, logging.WARNING))


def _renderers(log_format: LogFormat, stream: TextIO) -> list[structlog.types.Processor]:
    if log_format is LogFormat.CONSOLE:
        # Without the values of local variables, which rich would print: they are requests, and keys.
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty(), sort_keys=False, exception_formatter=plain)
        return [_on_one_line, renderer]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_to_json)]


def _without_secrets(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Take out facts whose name says that they are secret, and contents of messages, of which some are.

    A net below the rule that nobody logs such things.
    """
    return {name: _shown(name, value) for name, value in event.items()}


def _shown(name: str, value: Any) -> Any:
    if hasattr(value, "DESCRIPTOR"):  # a protobuf message
        return f"<{value.DESCRIPTOR.full_name}>"
    if isinstance(value, dict):
        return {key: _shown(str(key), each) for key, each in value.items()}
    is_secret = isinstance(value, str | bytes) and value and name.lower().endswith(SECRET_NAMES)
    return REDACTED if is_secret else value


def _on_one_line(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """Escape control characters of the message, as the renderer does with the facts.

    A message of the standard library's loggers has its facts inside; one with a line break could pose as a second line.
    """
    message = str(event.get("event", ""))
    return {**event, "event": "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)}


def _to_json(event: Any, default: Any) -> str:
    return orjson.dumps(event, default=default, option=orjson.OPT_NON_STR_KEYS).decode()
