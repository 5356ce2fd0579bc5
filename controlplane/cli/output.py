"""What commands print: tables for people, the API's own documents for programs.

On a terminal tables have colours, unless NO_COLOR is set; elsewhere they are plain, a row a line, so that grep and awk
work. Nothing is cut. Everything that came from outside is made safe first and is never markup.
"""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

import click

from controlplane.cli.terminal_text import json_safe, one_line

if TYPE_CHECKING:
    from rich.console import Console

_ABSENT = "-"
_MAX_TABLE_CHARS = 10_000


class OutputFormat(enum.StrEnum):
    """How to print what a command returns."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


STATE_STYLES: Mapping[str, str] = {
    "RUNNING": "green",
    "READY": "green",
    "PAUSED": "yellow",
    "SUSPENDED": "yellow",
    "PROVISIONING": "yellow",
    "MIGRATING": "yellow",
    "PENDING": "yellow",
    "MAINTENANCE": "yellow",
    "DRAINING": "yellow",
    "CRASHED": "red",
    "LOST": "red",
    "NOT_READY": "red",
    "OFFLINE": "red",
}
"""Colours of power states and phases; others have none."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its title, whether it holds numbers, and the colours of its values."""

    title: str
    is_number: bool = False
    styles: Mapping[str, str] = field(default_factory=dict)
    style: str = ""
    """Of all other values."""


def print_document(document: Any, output: OutputFormat) -> None:
    """Print a document of the API as JSON or YAML."""
    if output is OutputFormat.YAML:
        import yaml  # noqa: PLC0415 - start-up time

        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=False, width=2**20)
    else:
        import json  # noqa: PLC0415 - start-up time

        text = json_safe(json.dumps(document, indent=2, ensure_ascii=False)) + "\n"
    click.echo(text, nl=False)


def print_piece(document: Any, output: OutputFormat) -> None:
    """Print one of many documents that come one after the other: a line of JSON, or a YAML document."""
    if output is OutputFormat.YAML:
        click.echo("---")
        print_document(document, output)
        return
    import json  # noqa: PLC0415 - start-up time

    click.echo(json_safe(json.dumps(document, ensure_ascii=False)))


def print_columns(cells: Sequence[tuple[str, int, str]], stream: TextIO | None = None) -> None:
    """Print one row of a table whose other rows are not known yet.

    Args:
        cells: text, least width, and colour at a terminal ("" for none).
    """
    stream = stream or sys.stdout
    is_coloured = stream.isatty() and not os.environ.get("NO_COLOR")
    padded = []
    for text, width, colour in cells:
        shown = (one_line(text) or _ABSENT).ljust(width)
        padded.append(click.style(shown, fg=colour) if colour and is_coloured else shown)
    click.echo("  ".join(padded).rstrip(), file=stream)


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], stream: TextIO | None = None) -> None:
    """Print rows below their titles; an empty cell is shown as "-"."""
    stream = stream or sys.stdout
    cells = [[one_line(cell) or _ABSENT for cell in row] for row in rows]
    if stream.isatty():
        _print_rich_table(columns, cells, _console(stream))
        return
    widths = [max(map(len, texts)) for texts in zip([c.title for c in columns], *cells, strict=True)]
    for row in ([column.title for column in columns], *cells):
        padded = (
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        )
        click.echo("  ".join(padded).rstrip(), file=stream)


def print_fields(fields: Sequence[tuple[str, str]], stream: TextIO | None = None) -> None:
    """Print titles and values, a pair a line; pairs without a value are left out."""
    stream = stream or sys.stdout
    shown = [(title, one_line(value)) for title, value in fields if value]
    width = max((len(title) for title, _ in shown), default=0) + 1
    for title, value in shown:
        label = f"{title}:".ljust(width)
        click.echo(f"{label}  {value}", file=stream)


def _style(column: Column, cell: str) -> str:
    return column.styles.get(cell, column.style if cell != _ABSENT else "")


def _console(stream: TextIO) -> Console:
    from rich.console import Console  # noqa: PLC0415 - start-up time

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def _print_rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], console: Console) -> None:
    from rich.table import Table  # noqa: PLC0415 - start-up time
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(Text(column.title), justify="right" if column.is_number else "left", no_wrap=True)
    for row in rows:
        # Text, not str: a str would be read as markup.
        table.add_row(*(Text(cell, style=_style(column, cell)) for cell, column in zip(row, columns, strict=True)))
    # Rather let the terminal wrap long rows than cut every cell to a letter or two.
    natural_width = console.measure(table, options=console.options.update(max_width=_MAX_TABLE_CHARS)).maximum
    console.width = max(console.width, natural_width)
    console.print(table, crop=False)
