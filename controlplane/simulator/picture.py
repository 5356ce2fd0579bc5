"""Draw the loads of the nodes before and after, as SVG.

Up to `MAX_BARS` nodes have a row of bars each, in which every VM is a block as wide as its share; more are drawn as a
grid of cells, coloured by load. Colours follow the reader's light or dark setting.
"""

from __future__ import annotations

import colorsys
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

from controlplane.domain.quantities import format_bytes
from controlplane.simulator.result import Result
from controlplane.simulator.world import SeenNode, SeenVm

MAX_BARS: Final = 80
_HUES: Final = (211, 28, 142, 265, 340, 180, 48, 95, 300, 12)
_MARGIN: Final = 24
_NAME_WIDTH: Final = 150
_BAR_WIDTH: Final = 340
_BAR_HEIGHT: Final = 13
_ROW_HEIGHT: Final = 46
_GAP: Final = 70
_PERCENT_WIDTH: Final = 36
_TOP: Final = 100
_MAX_NAME_CHARS: Final = 20
_CELL: Final = 15
_LEAST_BLOCK: Final = 0.75
_TEXT_BLOCK: Final = 34.0

_LIGHT: Final = {"paper": "#ffffff", "ink": "#1f2933", "soft": "#616e7c", "track": "#e9edf1", "line": "#d3dae2"}
_DARK: Final = {"paper": "#14181d", "ink": "#e4e9ee", "soft": "#93a1af", "track": "#242b33", "line": "#323c46"}
_RED: Final = ("#c92a2a", "#ff8787")
_STEPS: Final = (-0.07, 0.0, 0.07)
_SHAPE: Final = """
svg { font-family: system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif }
.line { stroke-width: 1 } .block { stroke-width: .75 } .came { stroke-width: 1.5 }
.title { font-size: 17px; font-weight: 600 } .head { font-size: 13px; font-weight: 600 } .name { font-size: 12px }
.small { font-size: 10px } .tiny { font-size: 8.5px; fill: #ffffff; pointer-events: none }
"""


def _style() -> str:
    """Write the style sheet. Plain colours only: many viewers know no variables, nor the reader's setting."""
    light = "\n".join(_colours(_LIGHT, _RED[0], 0.55, 0.48))
    dark = "\n".join(_colours(_DARK, _RED[1], 0.42, 0.42))
    return f"{_SHAPE}{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def _colours(names: Mapping[str, str], red: str, lightness: float, saturation: float) -> Iterator[str]:
    for name in ("paper", "ink", "soft", "track"):
        yield f".{name} {{ fill: {names[name]} }}"
    yield f".bad {{ fill: {red} }} .line {{ stroke: {names['line']} }}"
    yield f".block {{ stroke: {names['paper']} }} .came {{ stroke: {names['ink']} }}"
    for index, (hue, step) in enumerate(itertools.product(_HUES, _STEPS)):
        red_part, green, blue = colorsys.hls_to_rgb(hue / 360, lightness + step, saturation)
        yield f".c{index} {{ fill: #{round(red_part * 255):02x}{round(green * 255):02x}{round(blue * 255):02x} }}"


def draw(result: Result, title: str) -> str:
    """Draw a result; equal results give equal pictures."""
    if max(len(result.before), len(result.after)) > MAX_BARS:
        return _grid(result, title)
    return _bars(result, title)


# -- bars


def _bars(result: Result, title: str) -> str:
    before = {node.id: node for node in result.before}
    width = 2 * _MARGIN + _NAME_WIDTH + 2 * _BAR_WIDTH + _GAP + _PERCENT_WIDTH
    height = _TOP + _ROW_HEIGHT * len(result.after) + 52
    left, right = _MARGIN + _NAME_WIDTH, _MARGIN + _NAME_WIDTH + _BAR_WIDTH + _GAP
    parts = [
        *_frame(width, height, title, result),
        _text(left, _TOP - 18, "before", "ink head"),
        _text(right, _TOP - 18, "after", "ink head"),
    ]
    for index, node in enumerate(result.after):
        y = _TOP + index * _ROW_HEIGHT
        old = before.get(node.id)
        parts.append(f'<line class="line" x1="{_MARGIN}" x2="{width - _MARGIN}" y1="{y - 7}" y2="{y - 7}"/>')
        parts.append(_text(_MARGIN, y + 11, _short(node.name), "ink name"))
        parts.append(_text(_MARGIN, y + 25, node.phase, f"{'soft' if node.phase == 'READY' else 'bad'} small"))
        if old is None:
            parts.append(_text(left, y + 17, "not there yet", "soft small"))
        else:
            parts += _node_bars(left, y, old, frozenset())
        came = {vm.id for vm in node.vms} - ({vm.id for vm in old.vms} if old is not None else set())
        parts += _node_bars(right, y, node, frozenset(came))
    legend = "upper bar: memory, lower bar: vCPUs that are claimed; a block is a VM, with an edge if it came meanwhile"
    parts.append(_text(_MARGIN, height - 20, legend, "soft small"))
    return _document(width, height, parts)


def _node_bars(x: float, y: float, node: SeenNode, came: frozenset[str]) -> Iterator[str]:
    rows = (
        ([vm.claim.memory_bytes for vm in node.vms], node.capacity.memory_bytes, node.memory_percent),
        ([vm.claim.vcpus for vm in node.vms], node.capacity.vcpus, node.cpu_percent),
    )
    for index, (sizes, capacity, percent) in enumerate(rows):
        top = y + index * (_BAR_HEIGHT + 3)
        yield f'<rect class="track" x="{_n(x)}" y="{_n(top)}" width="{_BAR_WIDTH}" height="{_BAR_HEIGHT}" rx="2"/>'
        # What is claimed beyond the capacity still has to end with the bar.
        scale = _BAR_WIDTH / max(capacity, sum(sizes), 1)
        at = x
        for vm, size in zip(node.vms, sizes, strict=True):
            yield from _block(at, top, size * scale, vm, is_new=vm.id in came)
            at += size * scale
        kind = "bad" if percent > 100 else "soft"
        yield _text(x + _BAR_WIDTH + 6, top + 10, f"{percent:.0f} %", f"{kind} small")


def _block(x: float, y: float, width: float, vm: SeenVm, *, is_new: bool) -> Iterator[str]:
    if width < _LEAST_BLOCK and not is_new:
        size = f'width="{_n(width)}" height="{_BAR_HEIGHT}"'
        yield f'<rect class="{_colour(vm.id)}" x="{_n(x)}" y="{_n(y)}" {size}/>'
        return
    tip = escape(f"{vm.name}: {vm.claim.vcpus} vCPUs, {format_bytes(vm.claim.memory_bytes)}")
    kind = f"{_colour(vm.id)} {'came' if is_new else 'block'}"
    yield (
        f'<rect class="{kind}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_BAR_HEIGHT}">'
        f"<title>{_clean(tip)}</title></rect>"
    )
    if width >= _TEXT_BLOCK:
        shown = _short(vm.name, int(width / 5.4))
        yield _text(x + 4, y + 9.5, shown, "tiny")


def _colour(vm_id: str) -> str:
    """Choose a VM's colour: by its id, so that it is the same before and after."""
    return f"c{zlib.crc32(vm_id.encode('utf-8', 'replace')) % (len(_HUES) * len(_STEPS))}"


# -- grid


def _grid(result: Result, title: str) -> str:
    columns = max(20, min(100, round((2 * len(result.after)) ** 0.5)))
    kinds = (("before", result.before), ("after", result.after))
    block_width = columns * _CELL
    width = 2 * _MARGIN + 2 * block_width + _GAP
    rows = -(-max(len(result.before), len(result.after)) // columns)
    height = _TOP + rows * _CELL + 60
    parts = [*_frame(width, height, title, result)]
    for index, (name, nodes) in enumerate(kinds):
        left = _MARGIN + index * (block_width + _GAP)
        parts.append(_text(left, _TOP - 18, name, "ink head"))
        parts += _cells(left, nodes, columns)
    legend = (
        "a cell is a node, the darker the more of its memory or vCPUs is claimed; red ones take no VMs or have too much"
    )
    parts.append(_text(_MARGIN, height - 20, legend, "soft small"))
    return _document(width, height, parts)


def _cells(left: float, nodes: Sequence[SeenNode], columns: int) -> Iterator[str]:
    for index, node in enumerate(nodes):
        x, y = left + index % columns * _CELL, _TOP + index // columns * _CELL
        load = max(node.memory_percent, node.cpu_percent)
        is_bad = node.phase != "READY" or load > 100
        style = 'class="bad"' if is_bad else f'fill="#2f7ed8" fill-opacity="{0.1 + 0.9 * load / 100:.2f}"'
        tip = f"{node.name}: memory {node.memory_percent:.0f} %, CPU {node.cpu_percent:.0f} %, {len(node.vms)} VMs"
        yield (
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_CELL - 2}" height="{_CELL - 2}" rx="2" {style}>'
            f"<title>{_clean(escape(f'{tip}, {node.phase}'))}</title></rect>"
        )


# -- parts


def _frame(width: float, height: float, title: str, result: Result) -> Iterator[str]:
    yield f'<rect class="paper" width="{_n(width)}" height="{_n(height)}"/>'
    yield _text(_MARGIN, 32, _short(title, 100), "ink title")
    count = len(result.faults)
    faults = "all VMs have a place" if not count else f"{count} {'VM has' if count == 1 else 'VMs have'} no place"
    text = f"imbalance {result.imbalance_before:.1f} to {result.imbalance_after:.1f} points"
    yield _text(_MARGIN, 50, f"{text}; {faults}", f"{'bad' if count else 'soft'} small")


def _document(width: float, height: float, parts: Sequence[str]) -> str:
    size = f'width="{_n(width)}" height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}"'
    body = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    return f"{head}\n<style>{_style()}</style>\n{body}\n</svg>\n"


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{_n(x)}" y="{_n(y)}">{_clean(escape(text))}</text>'


def _short(text: str, most: int = _MAX_NAME_CHARS) -> str:
    return text if len(text) <= most else text[: max(most - 1, 0)] + "…"


def _clean(text: str) -> str:
    """Take out what XML cannot hold."""
    return "".join(each if each.isprintable() or each == " " else "?" for each in text)


def _n(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
