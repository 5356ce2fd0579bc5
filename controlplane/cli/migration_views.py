"""Forecasts, progress and measures of migrations as lines for people. Everything comes from the API's JSON."""

from __future__ import annotations

from controlplane.cli.api_client import Document
from controlplane.cli.sizes import format_took

_BAR_CHARS = 24
_MIB = 2**20
_BYTES_PER_MBIT = 125_000
_MS = 1000


def forecast_line(forecast: Document, hostname: str) -> str:
    """Say in one line where a VM goes and what that will take."""
    took, still = _took(forecast, "durationMs"), _still(forecast)
    return f"to node {hostname}: expected to take {took}, with the guest standing still for {still}"


def forecast_fields(answer: Document, hostname: str) -> list[tuple[str, str]]:
    """Make titles and values of a forecast."""
    forecast = answer.get("forecast", {})
    pairs = [
        ("VM", str(answer.get("vm", {}).get("name", ""))),
        ("To", hostname),
        ("Duration", _took(forecast, "durationMs")),
        ("Downtime", _still(forecast)),
        ("Memory", _mib(forecast, "memoryBytes")),
        ("Disks to copy", _mib(forecast, "diskBytes") if _number(forecast, "diskBytes") else "none"),
        ("Guest writes", f"{_mib(forecast, 'dirtyBytesPerSec')}/s"),
        ("Network", f"{_number(forecast, 'bandwidthBytesPerSec') // _BYTES_PER_MBIT} Mbit/s"),
        ("Passes", str(forecast.get("passCount", 0))),
        ("Converges", "yes" if forecast.get("converges") else "no"),
    ]
    return [*pairs, *((f"With {each.get('name', '')}", _alternative(each)) for each in _alternatives(forecast))]


def forecast_warnings(forecast: Document) -> list[str]:
    """Say what the operator should know before it begins."""
    if forecast.get("ends"):
        return []
    ways = [f"--{each.get('name', '')} would take {_alternative(each)}" for each in _alternatives(forecast)]
    advice = "; ".join([*ways, "--cold lets it stand still"])
    return [f"the guest writes faster than the network carries, so this may not come to an end: {advice}"]


def progress_line(sent: Document, text: str) -> str:
    """Draw how far the transfer is; "" if nothing is known of it."""
    if "percent" not in sent:
        return ""
    percent = max(0, min(int(sent["percent"]), 100))
    full = _BAR_CHARS * percent // 100
    rest = text.partition("%, ")[2]
    return f"[{'#' * full}{'.' * (_BAR_CHARS - full)}] {percent} %" + (f", {rest}" if rest else "")


def stats_line(stats: Document, forecast: Document) -> str:
    """Say what a migration took, beside what was expected."""
    if not _number(stats, "durationMs"):
        return "what it took is not known: its hosts were not heard when it ended"
    sent = _mib(stats, "bytesTransferred")
    disks = f", {_mib(stats, 'diskBytes')} of them disks" if _number(stats, "diskBytes") else ""
    return (
        f"took {_took(stats, 'durationMs')} (expected {_took(forecast, 'durationMs')}); the guest stood still for "
        f"{_still(stats)} (expected {_still(forecast)}); {sent} sent{disks}"
    )


def _alternatives(forecast: Document) -> list[Document]:
    return list(forecast.get("alternatives", ()))


def _alternative(each: Document) -> str:
    ends = "" if each.get("ends") else ", if it ends"
    return f"{_took(each, 'durationMs')}, standing still for {_still(each)}{ends}"


def _still(document: Document) -> str:
    return f"{_number(document, 'downtimeMs')} ms"


def _took(document: Document, name: str) -> str:
    return format_took(_number(document, name) / _MS)


def _mib(document: Document, name: str) -> str:
    return f"{-(-_number(document, name) // _MIB)} MiB"


def _number(document: Document, name: str) -> int:
    return int(document.get(name, 0) or 0)
