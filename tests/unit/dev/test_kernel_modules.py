"""The loading order of kernel modules, from modules that carry only what the order needs."""

import lzma
from pathlib import Path

import pytest

from controlplane.cli.dev.kernel_modules import KernelModuleError, load_order


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A directory like /lib/modules/VERSION: a driver on a bus on a ring, one of them compressed, and one built in."""
    (tmp_path / "kernel/drivers").mkdir(parents=True)
    (tmp_path / "modules.builtin").write_text("kernel/lib/crc32.ko\nkernel/drivers/built-in-bus.ko\n")
    write_module(tmp_path, "virtio-ring")
    write_module(tmp_path, "virtio", depends="virtio_ring")
    write_module(tmp_path, "virtio_net", depends="virtio,crc32,virtio-ring")
    packed = tmp_path / "kernel/drivers/virtio_blk.ko.xz"
    packed.write_bytes(lzma.compress(module_bytes("virtio")))
    return tmp_path


def module_bytes(depends: str) -> bytes:
    return b"\x7fELF license=GPL\0depends=" + depends.encode() + b"\0retpoline=Y\0"


def write_module(kernel: Path, name: str, depends: str = "") -> None:
    (kernel / f"kernel/drivers/{name}.ko").write_bytes(module_bytes(depends))


def names(kernel: Path, *wanted: str) -> list[str]:
    return [module.name for module in load_order(kernel, wanted)]


def test_load_order_module_comes_after_all_it_depends_on(kernel: Path) -> None:
    assert names(kernel, "virtio_net") == ["virtio_ring", "virtio", "virtio_net"]


def test_load_order_shared_dependency_is_loaded_once(kernel: Path) -> None:
    assert names(kernel, "virtio-net", "virtio_blk") == ["virtio_ring", "virtio", "virtio_net", "virtio_blk"]


def test_load_order_built_in_module_is_left_out(kernel: Path) -> None:
    assert names(kernel, "built_in_bus", "crc32") == []


def test_load_order_compressed_module_is_returned_unpacked(kernel: Path) -> None:
    assert load_order(kernel, ["virtio_blk"])[-1].data == module_bytes("virtio")


def test_load_order_unknown_module_is_refused_by_name(kernel: Path) -> None:
    with pytest.raises(KernelModuleError, match="has no module nonsense"):
        names(kernel, "nonsense")


def test_load_order_circle_of_dependencies_is_refused_with_the_circle(kernel: Path) -> None:
    write_module(kernel, "one", depends="two")
    write_module(kernel, "two", depends="one")
    with pytest.raises(KernelModuleError, match="one -> two -> one"):
        names(kernel, "one")
