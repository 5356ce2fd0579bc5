"""Texts that try to be markup: wherever they stand, a definition has the elements it would have without them."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hypervisor.errors import Refused
from hypervisor.libvirt import domain_xml
from hypervisor.types import VmConfig
from tests.unit.hypervisor.test_domain_xml import CONFIGS, TCG

HOSTILE = (
    "'/><disk type='file'><source file='/etc/shadow'/></disk><x y='",
    "]]><!-- &lt; &#0; &xxe; <?pi?>",
    '"><qemu:commandline><qemu:arg value="-device"/></qemu:commandline>',
    "-device virtio,x=y",
    "a,readonly=off,file=/etc/shadow",
    "\n  <on_poweroff>restart</on_poweroff>",
)


def _with_texts(value: Any, text: str, places: list[str], at: str = "") -> Iterator[tuple[str, Any]]:
    """Give copies of a configuration, each with one text replaced."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            for where, changed in _with_texts(getattr(value, field.name), text, places, f"{at}.{field.name}"):
                try:
                    yield where, dataclasses.replace(value, **{field.name: changed})
                except (ValueError, TypeError):
                    continue  # refused when it is made: as good as escaped
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            for where, changed in _with_texts(item, text, places, f"{at}[{index}]"):
                yield where, (*value[:index], changed, *value[index + 1 :])
    elif isinstance(value, Path):
        places.append(at)
        yield at, value.with_name(value.name + text.replace("/", "|"))
    elif isinstance(value, str) and value and not isinstance(value, enum.Enum):
        places.append(at)
        yield at, text


def _elements(config: VmConfig) -> list[str]:
    document = domain_xml.parse(domain_xml.to_text(domain_xml.build_domain(config, TCG)))
    return [element.tag for element in document.iter() if isinstance(element.tag, str)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_definition_has_no_more_elements_for_texts_that_look_like_some(name: str, text: str) -> None:
    places: list[str] = []
    wanted = _elements(CONFIGS[name])

    for where, config in _with_texts(CONFIGS[name], text, places):
        try:
            found = _elements(config)
        except (Refused, ValueError):
            continue  # a text that is no UUID, no address: refused
        assert set(found) <= set(wanted), where
        assert len(found) <= len(wanted), where
    assert ".name" in places
