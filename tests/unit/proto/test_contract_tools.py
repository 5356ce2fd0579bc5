"""The contract's own tools: generated files fit the .proto files, lint is clean, nothing released has been broken."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

PROTO_ROOT = Path(__file__).resolve().parents[3] / "proto"
CONTRACT = PROTO_ROOT / "limiquantix.binpb"
BASELINE = PROTO_ROOT / "baseline.binpb"

TOOL_DEADLINE_S = 60
FINDINGS_EXIT_CODE = 100
"""What buf ends with when it worked and found something."""


@pytest.fixture(scope="module")
def buf() -> str:
    """Path of the buf binary, beside the interpreter or on the PATH."""
    beside = Path(sys.executable).parent / "buf"
    found = str(beside) if beside.exists() else shutil.which("buf")
    if found is None:
        pytest.skip("buf is not installed; the development dependencies bring it (buf-bin)")
    return found


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(c) for c in command], cwd=PROTO_ROOT, capture_output=True, text=True, timeout=TOOL_DEADLINE_S, check=False
    )


def find_file(contract: FileDescriptorSet, name: str) -> FileDescriptorProto:
    return next(file for file in contract.file if file.name == f"limiquantix/{name}")


def find_message(contract: FileDescriptorSet, file: str, name: str) -> DescriptorProto:
    return next(message for message in find_file(contract, file).message_type if message.name == name)


def remove_field(contract: FileDescriptorSet) -> None:
    del find_message(contract, "compute/v1/vm.proto", "CpuConfig").field[0]


def renumber_field(contract: FileDescriptorSet) -> None:
    find_message(contract, "compute/v1/vm.proto", "CpuConfig").field[0].number = 77


def retype_field(contract: FileDescriptorSet) -> None:
    field = find_message(contract, "compute/v1/vm.proto", "MemoryConfig").field[0]
    field.type = FieldDescriptorProto.TYPE_STRING


def rename_field(contract: FileDescriptorSet) -> None:
    field = find_message(contract, "compute/v1/vm.proto", "MemoryConfig").field[0]
    field.name, field.json_name = "megabytes", "megabytes"


def rename_enum_value(contract: FileDescriptorSet) -> None:
    status = find_message(contract, "compute/v1/vm.proto", "VmStatus")
    status.enum_type[0].value[1].name = "UP"


def remove_method(contract: FileDescriptorSet) -> None:
    del find_file(contract, "node/v1/node_daemon.proto").service[0].method[0]


def test_generated_files_of_the_tree_match_the_proto_files() -> None:
    done = run(sys.executable, PROTO_ROOT / "generate.py", "--check")

    assert done.returncode == 0, done.stderr


def test_generate_check_with_a_changed_proto_file_names_what_is_stale(tmp_path: Path) -> None:
    copy = shutil.copytree(PROTO_ROOT, tmp_path / "proto", ignore=shutil.ignore_patterns("__pycache__"))
    changed = copy / "limiquantix" / "compute" / "v1" / "folder.proto"
    changed.write_text(changed.read_text() + "\n// One more.\nmessage Extra {\n  string id = 1;\n}\n")

    done = run(sys.executable, copy / "generate.py", "--check")

    assert done.returncode == 1
    assert "folder_pb2.py does not match" in done.stderr
    assert "limiquantix.binpb does not match" in done.stderr
    assert "vm_pb2.py" not in done.stderr


def test_generate_baseline_makes_the_present_contract_the_baseline(buf: str, tmp_path: Path) -> None:
    copy = shutil.copytree(PROTO_ROOT, tmp_path / "proto", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / BASELINE.name).unlink()

    done = run(sys.executable, copy / "generate.py", "--baseline")

    assert done.returncode == 0, done.stderr
    written = FileDescriptorSet.FromString((copy / BASELINE.name).read_bytes())
    assert not any(file.HasField("source_code_info") for file in written.file)
    assert run(buf, "breaking", copy / BASELINE.name, "--against", CONTRACT).returncode == 0
    assert run(buf, "breaking", CONTRACT, "--against", copy / BASELINE.name).returncode == 0


def test_lint_of_the_contract_finds_nothing(buf: str) -> None:
    done = run(buf, "lint", CONTRACT)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "finding"),
    [("compute/v1/vm.proto", "COMMENT_MESSAGE"), ("node/v1/node_daemon.proto", "COMMENT_RPC")],
)
def test_lint_of_a_contract_without_comments_finds_them_missing(
    buf: str, tmp_path: Path, file: str, finding: str
) -> None:
    contract = FileDescriptorSet.FromString(CONTRACT.read_bytes())
    for location in find_file(contract, file).source_code_info.location:
        location.ClearField("leading_comments")
    bare = tmp_path / "bare.binpb"
    bare.write_bytes(contract.SerializeToString())

    done = run(buf, "lint", bare, "--error-format", "json")

    assert done.returncode == FINDINGS_EXIT_CODE, done.stdout + done.stderr
    assert f'"{finding}"' in done.stdout


def test_lint_of_an_alias_in_another_file_finds_it(buf: str, tmp_path: Path) -> None:
    contract = FileDescriptorSet.FromString(CONTRACT.read_bytes())
    enum = find_file(contract, "node/v1/node_daemon.proto").enum_type[0]
    enum.options.allow_alias = True
    enum.value.add(name="SAME_AGAIN", number=enum.value[0].number)
    aliased = tmp_path / "aliased.binpb"
    aliased.write_bytes(contract.SerializeToString())

    done = run(buf, "lint", aliased, "--error-format", "json")

    assert done.returncode == FINDINGS_EXIT_CODE, done.stdout + done.stderr
    assert '"ENUM_NO_ALLOW_ALIAS"' in done.stdout


def test_breaking_of_the_contract_against_the_baseline_finds_nothing(buf: str) -> None:
    done = run(buf, "breaking", CONTRACT, "--against", BASELINE)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("break_it", "finding"),
    [
        (remove_field, "FIELD_NO_DELETE"),
        (renumber_field, "FIELD_NO_DELETE"),
        (retype_field, "FIELD_SAME_TYPE"),
        (rename_field, "FIELD_SAME_NAME"),
        (rename_enum_value, "ENUM_VALUE_SAME_NAME"),
        (remove_method, "RPC_NO_DELETE"),
    ],
)
def test_breaking_of_a_broken_contract_finds_it(
    buf: str, tmp_path: Path, break_it: Callable[[FileDescriptorSet], None], finding: str
) -> None:
    contract = FileDescriptorSet.FromString(CONTRACT.read_bytes())
    break_it(contract)
    broken = tmp_path / "broken.binpb"
    broken.write_bytes(contract.SerializeToString())

    done = run(buf, "breaking", broken, "--against", BASELINE, "--error-format", "json")

    assert done.returncode == FINDINGS_EXIT_CODE, done.stdout + done.stderr
    assert f'"{finding}"' in done.stdout
