"""The `limiquantix` command. Loads the part that is called and nothing else, so that it starts at once."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from controlplane.cli.output import OutputFormat
from controlplane.cli.session import (
    AUTHORITY_VARIABLE,
    DEFAULT_SERVER,
    OUTPUT_VARIABLE,
    SERVER_VARIABLE,
    ServerUrl,
    session_of,
)

PROGRAM = "limiquantix"


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a command is defined, and its line in the list of commands."""

    module: str
    attribute: str
    short_help: str


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and lists commands without importing them."""

    def __init__(self, *args: Any, lazy_commands: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy_commands = lazy_commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the commands in the order in which they were given."""
        return list(self._lazy_commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command.

        Raises:
            ClickException: this installation lacks it or something that it needs.
        """
        lazy = self._lazy_commands.get(cmd_name)
        if lazy is None:
            return None
        try:
            command = getattr(importlib.import_module(lazy.module), lazy.attribute)
        except ImportError as error:
            raise click.ClickException(f"'{PROGRAM} {cmd_name}' is not usable in this installation: {error}") from error
        if not isinstance(command, click.Command):
            raise TypeError(f"{lazy.module}.{lazy.attribute} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands in the help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.short_help) for name, lazy in self._lazy_commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names of commands and options."""
        items = [
            CompletionItem(name, help=lazy.short_help)
            for name, lazy in self._lazy_commands.items()
            if name.startswith(incomplete)
        ]
        return items + click.Command.shell_complete(self, ctx, incomplete)


COMMANDS = {
    "vm": LazyCommand("controlplane.cli.vm_commands", "vm", "Create, list, change, power and delete virtual machines."),
    "node": LazyCommand("controlplane.cli.node_commands", "node", "List, look after and empty the hosts."),
    "capacity": LazyCommand("controlplane.cli.placement", "capacity", "Say how many more VMs of a size fit."),
    "balance": LazyCommand("controlplane.cli.balance_commands", "balance", "Show how evenly nodes are loaded."),
    "recommendation": LazyCommand(
        "controlplane.cli.balance_commands",
        "recommendation",
        "Approve, reject and carry out recommended moves.",
    ),
    "alert": LazyCommand("controlplane.cli.alert_commands", "alert", "Show what is wrong in the cluster."),
    "audit": LazyCommand("controlplane.cli.audit_commands", "audit", "Show who changed what, and what was refused."),
    "ha": LazyCommand("controlplane.cli.ha_commands", "ha", "Show and steer what happens when hosts die."),
    "operation": LazyCommand(
        "controlplane.cli.operation_commands", "operation", "Show, wait for and cancel the changes that were asked for."
    ),
    "login": LazyCommand("controlplane.cli.auth_commands", "login", "Log in to a control plane."),
    "logout": LazyCommand("controlplane.cli.auth_commands", "logout", "Log out."),
    "whoami": LazyCommand("controlplane.cli.auth_commands", "whoami", "Show as whom commands are carried out."),
    "token": LazyCommand("controlplane.cli.auth_commands", "token", "Print an access token for other programs."),
    "user": LazyCommand("controlplane.cli.user_commands", "user", "Make, change and remove users."),
    "api-key": LazyCommand("controlplane.cli.api_key_commands", "api_key", "Make and end keys of programs."),
    "project": LazyCommand("controlplane.cli.project_commands", "project", "Make, change and remove projects."),
    "folder": LazyCommand("controlplane.cli.folder_commands", "folder", "Arrange the VMs of a project in folders."),
    "role": LazyCommand("controlplane.cli.role_commands", "role", "Say who may do what, and where."),
    "events": LazyCommand("controlplane.cli.event_commands", "events", "Show what happened, and follow what happens."),
    "simulate": LazyCommand("controlplane.cli.simulate", "simulate", "Try out what would happen, without doing it."),
    "dev": LazyCommand("controlplane.cli.dev.command", "dev", "Run everything on this machine, to try or develop it."),
    "openapi": LazyCommand("controlplane.cli.openapi", "openapi", "Print the API as an OpenAPI document."),
    "completion": LazyCommand("controlplane.cli.completion", "completion", "Print a shell's completion script."),
    "version": LazyCommand("controlplane.cli.version", "version", "Show the versions of this command and the server."),
}


@click.group(
    cls=LazyGroup,
    lazy_commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--server",
    type=ServerUrl(),
    metavar="URL",
    envvar=SERVER_VARIABLE,
    default=DEFAULT_SERVER,
    show_default=True,
    show_envvar=True,
    help="Control plane to talk to.",
)
@click.option(
    "--output",
    "-o",
    type=click.Choice(OutputFormat, case_sensitive=False),
    envvar=OUTPUT_VARIABLE,
    default=OutputFormat.TABLE,
    show_default=True,
    show_envvar=True,
    help="How to print; json and yaml are the API's own documents.",
)
@click.option(
    "--ca",
    "authority",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    envvar=AUTHORITY_VARIABLE,
    show_envvar=True,
    help="Who must have signed the server's certificate (PEM); 'limiquantix-controlplane authority' prints it.",
)
@click.version_option(package_name="limiquantix", prog_name=PROGRAM)
@click.pass_context
def cli(context: click.Context, server: str, output: OutputFormat, authority: Path | None) -> None:
    """Run virtual machines on your own hosts.

    \b
    Exit status:
      0  done
      1  refused or failed
      2  wrong command line
      3  no control plane answers

    \b
    Example:
      limiquantix vm create web-1 --cpus 2 --memory 2GiB --disk 20GiB --start
    """
    context.obj = replace(session_of(context), server=server, output=output, authority=authority)


def main() -> None:
    """Run the command and exit with its status."""
    cli.main(prog_name=PROGRAM)
