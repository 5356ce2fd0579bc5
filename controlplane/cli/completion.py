"""`limiquantix completion`: the script that makes a shell complete commands, options and names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from controlplane.cli.main import PROGRAM, cli

_VARIABLE = f"_{PROGRAM.upper()}_COMPLETE"
_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    Names of VMs and nodes are asked from the control plane, which gets a second to answer.

    \b
    Example:
      source <(limiquantix completion bash)
      source <(limiquantix completion zsh)
      limiquantix completion fish > ~/.config/fish/completions/limiquantix.fish
    """
    completer = get_completion_class(shell)
    if completer is None:
        raise click.UsageError(f"no completion for {shell}; there is for {', '.join(_SHELLS)}")
    click.echo(completer(cli, {}, PROGRAM, _VARIABLE).source())
