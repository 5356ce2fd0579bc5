"""Options for what a guest is told at its first boot, shared by the commands that make VMs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import IO, Any

import click

from controlplane.cli.api_client import Document

MAX_TEXT_BYTES = 256 * 1024
"""What the server takes of one text."""

_TEXTS = ("user_data", "meta_data", "network_config", "vendor_data")


def first_boot_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options, and hand it what they say as `provisioning`, None if nothing."""

    @click.option("--hostname", metavar="NAME", help="Host name of the guest.  [default: made from the VM's name]")
    @click.option(
        "--ssh-key",
        "ssh_keys",
        type=click.File("rb"),
        multiple=True,
        metavar="FILE",
        help="Public keys that may log in as the image's user, such as ~/.ssh/id_ed25519.pub. Repeatable.",
    )
    @click.option("--user-data", type=click.File("rb"), metavar="FILE", help="cloud-init's user-data; - is stdin.")
    @click.option("--network-config", type=click.File("rb"), metavar="FILE", help="cloud-init's network-config.")
    @click.option("--meta-data", type=click.File("rb"), metavar="FILE", help="More of cloud-init's meta-data, YAML.")
    @click.option("--vendor-data", type=click.File("rb"), metavar="FILE", help="cloud-init's vendor-data.")
    @click.option("--ignition", type=click.File("rb"), metavar="FILE", help="Ignition's configuration, JSON.")
    @click.option("--unattend", type=click.File("rb"), metavar="FILE", help="Answer file of Windows set-up, XML.")
    @functools.wraps(command)
    def with_first_boot(
        *args: Any,
        hostname: str | None,
        ssh_keys: tuple[IO[bytes], ...],
        ignition: IO[bytes] | None,
        unattend: IO[bytes] | None,
        **kwargs: Any,
    ) -> None:
        texts = {name: file for name in _TEXTS if (file := kwargs.pop(name)) is not None}
        cloud_init: Document = {_camel_case(name): read_text(file) for name, file in texts.items()}
        if hostname:
            cloud_init["hostname"] = hostname
        if ssh_keys:
            cloud_init["sshAuthorizedKeys"] = [key for file in ssh_keys for key in _keys(read_text(file))]
        methods: Document = {}
        if cloud_init:
            methods["cloudInit"] = cloud_init
        if ignition is not None:
            methods["ignition"] = {"config": read_text(ignition)}
        if unattend is not None:
            methods["sysprep"] = {"unattendXml": read_text(unattend)}
        if len(methods) > 1:
            raise click.UsageError(
                "a guest is told by cloud-init, Ignition or an answer file; give options of one only"
            )
        command(*args, provisioning=methods or None, **kwargs)

    return with_first_boot


def first_boot_paths(provisioning: Document) -> list[str]:
    """Name what an update of a VM changes: of cloud-init each text and setting by itself, else the whole."""
    (method,) = provisioning
    if method != "cloudInit":
        return [f"spec.provisioning.{method}"]
    return [f"spec.provisioning.cloudInit.{name}" for name in provisioning[method]]


def read_text(file: IO[bytes]) -> str:
    """Read a file to send.

    Raises:
        UsageError: it is too large, or no text.
    """
    name = getattr(file, "name", "the file")
    data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise click.UsageError(f"{name} is larger than 256 KiB, which the server does not take")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise click.UsageError(f"{name} is no UTF-8 text") from None


def _keys(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
