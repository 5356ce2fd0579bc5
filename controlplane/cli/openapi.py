"""`limiquantix openapi`: the API as a document for other tools."""

from __future__ import annotations

import json

import click

from controlplane.api.http.openapi.contract import contract_document


@click.command()
def openapi() -> None:
    """Print the API as an OpenAPI 3.1 document.

    Tools make clients and tests from it. It needs no server; one of this version gives the same under /openapi.json.

    \b
    Example:
      limiquantix openapi > limiquantix.json
    """
    click.echo(json.dumps(contract_document(), indent=2))
