"""Where the keys of the secrets come from; the section `secrets` of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

DEFAULT_KEY_FILE = Path("/var/lib/limiquantix/controlplane/secret.key")
"""Beside the database, which is worth nothing to a thief without it; keep their backups apart."""


class SecretSettings(BaseModel):
    """Either a key file, which is made if there are no secrets yet, or a command of a key management service.

    Attributes:
        key_file: with a command, only keys that were wrapped before there was one.
        kms_command: program, by its path, and its first arguments.
        kms_limit_s: for one run of the command.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key_file: Path = DEFAULT_KEY_FILE
    kms_command: tuple[str, ...] = ()
    kms_limit_s: Annotated[float, Field(gt=0, le=120)] = 15.0

    @field_validator("kms_command")
    @classmethod
    def _is_a_path(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        if command and not Path(command[0]).is_absolute():
            raise ValueError("names a program by its absolute path, then its arguments")
        return command
