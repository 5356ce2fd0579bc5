"""The built contract is the documented one: everything in it is there unchanged, and additions keep out of its way."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest

from tests.unit.proto.contract_text import (
    Contract,
    ContractTextError,
    Field,
    Method,
    contract_of_descriptors,
    contract_of_text,
)
from tests.unit.proto.descriptors import FILES

TEXT_FILES = ("api-compute.txt", "api-node.txt")

FIRST_NUMBER_OF_OURS = 100
"""The documented contract may still grow below; what we add to its messages and enums begins here."""

DOCUMENTED_ALIASES = {
    "limiquantix.compute.v1.DiskDevice.BusType.VIRTIO",
    "limiquantix.compute.v1.NetworkInterface.Model.VIRTIO",
}
"""Names that the documented examples use for value 0, beside the one in the enum."""

SAMPLE = """
### compute/v1/a.proto   (package p.v1)

service S
  Get(GetRequest) -> Thing
  Watch(GetRequest) -> stream Thing
  Drop(GetRequest) -> Empty
message GetRequest:
message Thing: id:string=1, kinds:Kind[]=2, note:string?=3, sizes:map<string, uint64>=4, one:Other=5 [oneof choice]
  enum Kind {ZERO=0, ONE=1}
message Other: kind:Thing.Kind=7, at:Timestamp=8
enum Top {TOP_A=0}
"""


def differences(documented: Contract, built: Contract) -> list[str]:
    """Name everything documented that the built contract lacks or has otherwise, and additions in the wrong place."""
    found: list[str] = []
    for wanted, present in (
        (documented.services, built.services),
        (documented.methods, built.methods),
        (documented.messages, built.messages),
        (documented.fields, built.fields),
        (documented.enums, built.enums),
        (documented.values, built.values),
    ):
        found += [
            f"{name}: documented {value}, built {present.get(name)}"
            for name, value in wanted.items()
            if present.get(name) != value
        ]
    for name, field in built.fields.items():
        owner = name.rpartition(".")[0]
        if name not in documented.fields and owner in documented.messages and field.number < FIRST_NUMBER_OF_OURS:
            found.append(f"{name}: ours, but numbered {field.number}")
    for name, number in built.values.items():
        owner = name.rpartition(".")[0]
        if name in documented.values or owner not in documented.enums or name in DOCUMENTED_ALIASES:
            continue
        if number < FIRST_NUMBER_OF_OURS:
            found.append(f"{name}: ours, but numbered {number}")
    return found


def documented_text() -> str:
    """Read the documented contract, or skip where it is not at hand: it is no part of the project."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "spec"
    folder = Path(os.environ.get("LIMIQUANTIX_SPEC_DIR", beside))
    missing = [name for name in TEXT_FILES if not (folder / name).is_file()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} in {folder}; LIMIQUANTIX_SPEC_DIR names the documented contract's folder")
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in TEXT_FILES)


def test_built_contract_is_the_documented_one() -> None:
    documented = contract_of_text(documented_text())

    found = differences(documented, contract_of_descriptors(FILES))

    assert len(documented.services) == 4
    assert len(documented.messages) > 200
    assert found == []


def test_contract_text_of_a_sample_is_read_completely() -> None:
    contract = contract_of_text(SAMPLE)

    assert contract == Contract(
        services={"p.v1.S": "limiquantix/compute/v1/a.proto"},
        methods={
            "p.v1.S.Get": Method("p.v1.GetRequest", "p.v1.Thing", False),
            "p.v1.S.Watch": Method("p.v1.GetRequest", "p.v1.Thing", True),
            "p.v1.S.Drop": Method("p.v1.GetRequest", "google.protobuf.Empty", False),
        },
        messages=dict.fromkeys(("p.v1.GetRequest", "p.v1.Thing", "p.v1.Other"), "limiquantix/compute/v1/a.proto"),
        fields={
            "p.v1.Thing.id": Field(1, "string", ""),
            "p.v1.Thing.kinds": Field(2, "p.v1.Thing.Kind", "repeated"),
            "p.v1.Thing.note": Field(3, "string", "optional"),
            "p.v1.Thing.sizes": Field(4, "uint64", "map"),
            "p.v1.Thing.one": Field(5, "p.v1.Other", "oneof choice"),
            "p.v1.Other.kind": Field(7, "p.v1.Thing.Kind", ""),
            "p.v1.Other.at": Field(8, "google.protobuf.Timestamp", ""),
        },
        enums=dict.fromkeys(("p.v1.Thing.Kind", "p.v1.Top"), "limiquantix/compute/v1/a.proto"),
        values={"p.v1.Thing.Kind.ZERO": 0, "p.v1.Thing.Kind.ONE": 1, "p.v1.Top.TOP_A": 0},
    )


@pytest.mark.parametrize(
    "line",
    ["massage M: a:string=1", "message M: a:string=1; b:string=2", "message M: a:Unknown=1", "enum E {A}"],
)
def test_contract_text_with_a_line_not_understood_is_refused(line: str) -> None:
    with pytest.raises(ContractTextError):
        contract_of_text(f"### a/v1/a.proto (package p.v1)\n{line}\n")


def test_differences_of_equal_contracts_are_none() -> None:
    contract = contract_of_descriptors(FILES)

    assert differences(contract, copy.deepcopy(contract)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("service S\n", "service R\n"),
        ("-> stream Thing", "-> Thing"),
        ("-> Empty", "-> Thing"),
        ("id:string=1", "id:string=9"),
        ("id:string=1", "id:bytes=1"),
        ("id:string=1", "identity:string=1"),
        ("kinds:Kind[]=2", "kinds:Kind=2"),
        ("note:string?=3", "note:string=3"),
        ("map<string, uint64>", "map<string, int64>"),
        ("[oneof choice]", "[oneof other]"),
        ("one:Other=5 [oneof choice]", "one:Other=5"),
        ("ONE=1", "ONE=2"),
        ("ONE=1", "UNO=1"),
        ("id:string=1,", "id:string=1, extra:bool=99,"),
        ("ONE=1", "ONE=1, EXTRA=99"),
        ("compute/v1/a.proto", "compute/v1/b.proto"),
    ],
)
def test_differences_of_a_changed_contract_are_named(old: str, new: str) -> None:
    assert old in SAMPLE

    assert differences(contract_of_text(SAMPLE), contract_of_text(SAMPLE.replace(old, new, 1))) != []


def test_differences_of_additions_in_their_place_are_none() -> None:
    grown = SAMPLE.replace("id:string=1,", "id:string=1, extra:bool=100,").replace("ONE=1", "ONE=1, EXTRA=100")
    grown = (
        grown.replace("service S\n", "service S\n  Extra(ExtraRequest) -> Empty\n") + "message ExtraRequest: a:bool=1\n"
    )

    assert differences(contract_of_text(SAMPLE), contract_of_text(grown)) == []
