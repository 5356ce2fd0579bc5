"""The commands on the keys of what is kept secret."""

from __future__ import annotations

import click

from controlplane.config import ControlPlaneConfig
from controlplane.secrets import rotate_command
from controlplane.state.engine import StoreLimits


@click.group()
def secrets() -> None:
    """Give what is kept secret in the database new keys. Works while control planes run."""


@secrets.command()
@click.pass_obj
def rotate(config: ControlPlaneConfig) -> None:
    """Make a new data key and seal everything with it; takes a minute. Safe to repeat.

    Example: limiquantix-controlplane --config controlplane.yaml secrets rotate
    """
    limits = StoreLimits.for_connections(config.database.pool_size)
    rotate_command.rotate(config.database.url, limits, config.secrets)


@secrets.command("rotate-file")
@click.pass_obj
def rotate_file(config: ControlPlaneConfig) -> None:
    """Put a new first key into the key file. Copy the file to every control plane before it is started again.

    Example: limiquantix-controlplane --config controlplane.yaml secrets rotate-file
    """
    limits = StoreLimits.for_connections(config.database.pool_size)
    rotate_command.rotate_file(config.database.url, limits, config.secrets)
