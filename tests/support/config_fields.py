"""Every setting of a configuration model with its default, so that a rule about all of them needs no list."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def default_settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Visit each setting as ("section.name", default), sections of sections included.

    A section without a default of its own is visited by its class.
    """
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from default_settings(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.get_default(call_default_factory=True)


def default_secrets(model: type[BaseModel]) -> dict[str, Any]:
    """Settings that hold a secret, by their name, and have one by default; where one is kept is none."""
    words = ("password", "secret", "token", "key", "credential")
    return {
        name: default
        for name, default in default_settings(model)
        if default and not isinstance(default, Path) and any(word in name.rpartition(".")[2].lower() for word in words)
    }
