"""What the repository says about itself is true: locks, Makefile, links, sample configuration, units."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel

import controlplane.config
import nodedaemon.config

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?: ; [^\\]+)? \\$")
_HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")
_CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_MAKE_CALL = re.compile(r"\bmake ([a-z]+)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# A checkout, a home directory: what only exists where the line was written.
_MACHINE_PATH = re.compile(r"(?<![\w.$}/-])/(?:home|Users|work|root)/\w")
_NOT_OURS = {"__pycache__", "node_modules", "build", "dist"}


def _files() -> Iterator[Path]:
    """Every file of ours, in a stable order."""
    pending = [ROOT]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path.is_dir():
                hidden = path.name.startswith(".") and path.name != ".ci"
                if not hidden and path.name not in _NOT_OURS:
                    pending.append(path)
            elif path.is_file():
                yield path


MARKDOWN = [path for path in _files() if path.suffix == ".md"]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _pins(lock: Path) -> dict[str, set[str]]:
    """Versions by name; more than one where they depend on the platform."""
    pins: dict[str, set[str]] = {}
    for line in lock.read_text().splitlines():
        match = _PIN.match(line)
        if match is not None:
            pins.setdefault(canonicalize_name(match["name"]), set()).add(match["version"])
    return pins


def _requirements(*extras: str) -> list[Requirement]:
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


# -- locks


@pytest.mark.parametrize("lock", LOCKS, ids=_name)
def test_lock_each_line_is_a_pin_or_its_hash(lock: Path) -> None:
    other = [line for line in lock.read_text().splitlines() if not _PIN.match(line) and not _HASH.match(line)]

    assert other == []  # no registry addresses, no options, no unpinned or editable packages


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [
        ("dev.lock", _requirements("dev", "postgresql")),
        ("runtime.lock", _requirements("postgresql")),
        ("libvirt.lock", [Requirement(line) for line in PROJECT["optional-dependencies"]["libvirt"]]),
    ],
)
def test_lock_every_dependency_is_pinned_within_its_bounds(lock: str, requirements: list[Requirement]) -> None:
    pins = _pins(ROOT / "requirements" / lock)

    outside = {
        str(requirement): versions
        for requirement in requirements
        for versions in [pins.get(canonicalize_name(requirement.name), set())]
        if not versions or not all(requirement.specifier.contains(version) for version in versions)
    }

    assert outside == {}, "run `make lock`"


@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock.name != "dev.lock"], ids=_name)
def test_lock_other_than_dev_pins_the_versions_that_tests_run_with(lock: Path) -> None:
    tested = _pins(ROOT / "requirements" / "dev.lock")

    different = {name: versions for name, versions in _pins(lock).items() if tested.get(name, versions) != versions}

    assert different == {}, "run `make lock`"


# -- documents


def test_documents_every_make_target_they_name_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    unknown = {
        f"{_name(document)}: make {target}"
        for document in MARKDOWN
        for code in _CODE.findall(document.read_text())
        for target in _MAKE_CALL.findall(code)
        if target not in targets
    }

    assert {"run", "test"} <= targets
    assert unknown == set()


@pytest.mark.parametrize("document", MARKDOWN, ids=_name)
def test_document_every_relative_link_leads_somewhere(document: Path) -> None:
    text = _CODE.sub("", document.read_text())

    broken = [
        link
        for link in _LINK.findall(text)
        if "://" not in link and not link.startswith("#") and not (document.parent / link.partition("#")[0]).exists()
    ]

    assert broken == []


def test_decisions_are_numbered_without_gaps_and_carry_a_status() -> None:
    decisions = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))

    assert [int(path.name[:4]) for path in decisions] == list(range(1, len(decisions) + 1))
    for number, path in enumerate(decisions, start=1):
        heading, _, rest = path.read_text().partition("\n")
        assert heading.startswith(f"# {number}. "), path.name
        assert rest.lstrip().startswith("Status: "), path.name


def test_files_outside_tests_no_path_of_a_single_machine_is_named() -> None:
    found: list[str] = []
    for path in _files():
        if path.is_relative_to(ROOT / "tests"):
            continue  # made-up paths are what tests are made of
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{_name(path)}: {line.strip()}" for line in text.splitlines() if _MACHINE_PATH.search(line)]

    assert found == []


# -- deploy


@pytest.fixture
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away variables that would win over the files."""
    for name in [name for name in os.environ if name.startswith("LIMIQUANTIX_")]:
        monkeypatch.delenv(name)


def _settings(document: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting of a configuration by its path, lists and free mappings as they are."""
    if isinstance(document, dict) and document:
        for key, value in document.items():
            yield from _settings(value, f"{path}.{key}" if path else key)
    else:
        yield path, document


def _defaults(config: BaseModel) -> dict[str, Any]:
    return dict(_settings(config.model_dump(mode="json")))


@pytest.mark.usefixtures("_no_settings_from_outside")
def test_sample_controlplane_yaml_names_every_setting_with_its_default() -> None:
    sample = ROOT / "deploy" / "controlplane.yaml"

    loaded = controlplane.config.load_config(sample, {})

    assert _defaults(loaded) == _defaults(controlplane.config.ControlPlaneConfig())
    assert dict(_settings(yaml.safe_load(sample.read_text()))).keys() == _defaults(loaded).keys()


@pytest.mark.usefixtures("_no_settings_from_outside")
def test_sample_node_yaml_names_every_setting_and_marks_what_is_not_default() -> None:
    sample = ROOT / "deploy" / "node.yaml"
    marked = {line.partition(":")[0].strip() for line in sample.read_text().splitlines() if "# (!)" in line}

    loaded = _defaults(nodedaemon.config.load_config(sample, {}))

    defaults = _defaults(nodedaemon.config.NodeConfig())
    different = {path.rpartition(".")[2] for path, value in loaded.items() if value != defaults[path]}
    assert different == marked == {"guard", "run_dir"}
    assert dict(_settings(yaml.safe_load(sample.read_text()))).keys() == defaults.keys()


@pytest.mark.parametrize("unit", sorted((ROOT / "deploy").glob("*.service")), ids=_name)
def test_unit_every_command_it_runs_is_one_this_project_installs(unit: Path) -> None:
    commands = re.findall(r"^Exec\w+=/opt/limiquantix/bin/(\S+)", unit.read_text(), re.MULTILINE)

    assert commands
    assert set(commands) <= PROJECT["scripts"].keys()
