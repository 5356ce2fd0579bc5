"""Remake everything that is derived from the .proto files.

    python proto/generate.py               write the generated files
    python proto/generate.py --check       write nothing; exit 1 and name what differs
    python proto/generate.py --baseline    make the present contract what `buf breaking` compares with

Derived are the `*_pb2*.py` and `.pyi` modules beside their .proto files and `proto/limiquantix.binpb`, a self-contained
descriptor set (documentation included) from which `buf` and clients in other languages generate. The validation rules'
own file, `buf/validate/validate.proto`, is not kept in this tree: the installed protovalidate package carries its
descriptor, and that one is used, so rules and their interpreter cannot disagree.

The protocol of etcd, which we speak but do not define, lies beside: modules are derived from it too, but it is neither
in the descriptor set nor linted nor compared with a baseline.

`proto/baseline.binpb` is not derived: it is the contract as last released, and later ones may only add to it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from protobuf import DescFile
from protovalidate import FieldPathPb

PROTO_ROOT = Path(__file__).resolve().parent
DESCRIPTOR_SET = PROTO_ROOT / "limiquantix.binpb"
BASELINE = PROTO_ROOT / "baseline.binpb"
CONTRACT = "limiquantix"
SPOKEN = ("etcdserverpb", "mvccpb")
"""Directories of protocols that are other people's."""
GENERATED_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def _write_rules_descriptor(path: Path) -> None:
    """Write a descriptor set with the protovalidate rules and all they import."""
    files = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(file: DescFile) -> None:
        for dependency in file.dependencies:
            add(dependency)
        if file.name not in seen:
            seen.add(file.name)
            files.file.add().ParseFromString(file.proto.to_binary())

    add(FieldPathPb.desc().file)
    path.write_bytes(files.SerializeToString(deterministic=True))


def _run_protoc(arguments: list[str]) -> None:
    if protoc.main(["protoc", *arguments]) != 0:
        raise SystemExit("protoc failed; its messages are above")


def _sources(*directories: str) -> list[str]:
    paths = [path for directory in directories for path in PROTO_ROOT.glob(f"{directory}/**/*.proto")]
    return sorted(str(path.relative_to(PROTO_ROOT)) for path in paths)


@contextmanager
def _protoc_inputs() -> Iterator[list[str]]:
    """Give the arguments that name the imports, and at the end of a command line the contract's files to compile."""
    well_known = resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        rules = Path(scratch) / "rules.binpb"
        _write_rules_descriptor(rules)
        imports = [f"--proto_path={PROTO_ROOT}", f"--proto_path={well_known}", f"--descriptor_set_in={rules}"]
        yield [*imports, *_sources(CONTRACT)]


def generate(out: Path) -> None:
    """Write every derived file below `out`, in the layout of `proto/`."""
    plugins = Path(sys.executable).parent
    with _protoc_inputs() as inputs:
        _run_protoc(
            [
                f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
                f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
                f"--python_out={out}",
                f"--grpc_python_out={out}",
                f"--mypy_out=quiet:{out}",
                f"--mypy_grpc_out=quiet:{out}",
                *inputs,
                *_sources(*SPOKEN),
            ]
        )
        _run_protoc(
            ["--include_imports", "--include_source_info", f"--descriptor_set_out={out / DESCRIPTOR_SET.name}", *inputs]
        )


def write_baseline(path: Path) -> None:
    """Write the present contract as a descriptor set without comments, which no comparison needs."""
    with _protoc_inputs() as inputs:
        _run_protoc(["--include_imports", f"--descriptor_set_out={path}", *inputs])


def _derived_files(root: Path) -> dict[str, bytes]:
    directories = (CONTRACT, *SPOKEN)
    paths = [p for each in directories for p in root.glob(f"{each}/**/*") if p.name.endswith(GENERATED_SUFFIXES)]
    paths += [p for p in [root / DESCRIPTOR_SET.name] if p.exists()]
    return {str(p.relative_to(root)): p.read_bytes() for p in paths}


def check() -> int:
    """Compare what is committed with what the .proto files give now; name each difference."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        wanted, present = _derived_files(Path(scratch)), _derived_files(PROTO_ROOT)
    stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    for name in stale:
        print(f"proto/{name} does not match the .proto files; run `make proto`", file=sys.stderr)
    return 1 if stale else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="only compare; exit 1 on a difference")
    mode.add_argument("--baseline", action="store_true", help="write only what `buf breaking` compares with")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    if arguments.baseline:
        write_baseline(BASELINE)
    else:
        generate(PROTO_ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
