"""`power-check`: asks each power controller for the state of its host, and cuts nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from controlplane.power.agent import AgentFailed, PowerAgent
from controlplane.power.devices import DevicesUnusable
from controlplane.power.factory import FileControllers

MAX_AT_ONCE = 16


def check(devices_path: Path | None, host: str | None, limit_s: float) -> None:
    """Print a table of all controllers, or that of one host.

    Raises:
        ClickException: none is configured, or one of them did not answer; the exit status tells scripts.
    """
    if devices_path is None:
        raise click.ClickException("no power controllers are configured: set power.devices_path")
    try:
        agents = FileControllers(devices_path).agents()
    except DevicesUnusable as error:
        raise click.ClickException(str(error)) from error
    if host is not None:
        if host not in agents:
            raise click.ClickException(f"{devices_path} has no controller of {host}")
        agents = {host: agents[host]}
    answers = asyncio.run(_ask_all(agents, limit_s))
    table = Table("HOST", "AGENT", "ADDRESS", "OK", "ANSWER", box=None)
    for name, agent in sorted(agents.items()):
        is_good, words = answers[name]
        table.add_row(name, agent.kind, agent.address, "yes" if is_good else "NO", words)
    Console().print(table, markup=False)
    bad = sorted(name for name, (is_good, _) in answers.items() if not is_good)
    if bad:
        raise click.ClickException(f"no usable answer from the controllers of {', '.join(bad)}")


async def _ask_all(agents: dict[str, PowerAgent], limit_s: float) -> dict[str, tuple[bool, str]]:
    turns = asyncio.Semaphore(MAX_AT_ONCE)

    async def ask(agent: PowerAgent) -> tuple[bool, str]:
        async with turns:
            try:
                async with asyncio.timeout(limit_s):
                    return True, (await agent.read()).words
            except TimeoutError:
                return False, f"no answer within {limit_s:g} s"
            except AgentFailed as error:
                return False, str(error)

    answers = await asyncio.gather(*(ask(agent) for agent in agents.values()))
    return dict(zip(agents, answers, strict=True))
