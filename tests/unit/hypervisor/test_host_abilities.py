"""Reading what a host can give its VMs out of libvirt's documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lxml import etree

from hypervisor.abilities import Abilities, DeviceKind, DisplayKind, HugePages, NumaNode
from hypervisor.hardware import TpmVersion, VideoModel
from hypervisor.libvirt.host_abilities import (
    abilities_of,
    active_networks,
    firmware_features,
    has_iommu,
    virtualization_flag,
)
from hypervisor.libvirt.node_devices import device_of
from hypervisor.types import Accelerator

DOMAIN = """
<domainCapabilities>
  <os supported='yes'><enum name='firmware'><value>efi</value></enum></os>
  <cpu><mode name='custom' supported='yes'>
    <model usable='yes'>Nehalem</model><model usable='no'>EPYC</model></mode></cpu>
  <devices>
    <graphics supported='yes'><enum name='type'><value>vnc</value><value>sdl</value></enum></graphics>
    <video supported='yes'><enum name='modelType'><value>vga</value><value>virtio</value></enum></video>
    <tpm supported='yes'><enum name='backendModel'>{tpm}</enum></tpm>
  </devices>
  <features><hyperv supported='yes'><enum name='features'>
    <value>stimer</value><value>relaxed</value><value>vendor_id</value></enum></hyperv></features>
</domainCapabilities>
"""
HOST = """
<capabilities><host><topology><cells num='2'>
  <cell id='0'><memory unit='KiB'>2097152</memory><pages unit='KiB' size='4'>9</pages>
    <pages unit='KiB' size='2048'>3</pages><cpus><cpu id='1'/><cpu id='0'/></cpus></cell>
  <cell id='1'><memory unit='KiB'>1048576</memory><pages unit='KiB' size='2048'>4</pages><cpus/></cell>
</cells></topology></host></capabilities>
"""


def read(tpm: str = "<value>emulator</value>", accelerator: Accelerator = Accelerator.TCG) -> Abilities:
    return abilities_of(etree.fromstring(DOMAIN.format(tpm=tpm)), etree.fromstring(HOST), {2048: 5}, accelerator)


def test_abilities_are_read_from_libvirts_documents() -> None:
    abilities = read()
    assert abilities.has_uefi
    assert abilities.displays == (DisplayKind.VNC,)
    assert abilities.video_models == (VideoModel.VGA, VideoModel.VIRTIO)
    assert (abilities.cpu_models, abilities.known_cpu_models) == (("Nehalem",), ("EPYC", "Nehalem"))
    assert abilities.hyperv_features == ("relaxed", "stimer")
    assert abilities.huge_pages == (HugePages(2048, 7, 5),)
    assert abilities.numa_nodes == (NumaNode(0, (0, 1), 2048), NumaNode(1, (), 1024))


def test_tpm_needs_the_emulator_that_libvirt_finds() -> None:
    assert read().tpm_versions == tuple(TpmVersion)  # an old libvirt tells no versions
    assert read("<value>passthrough</value>").tpm_versions == ()


def test_vcpus_are_not_taken_from_emulated_machines() -> None:
    assert not read().can_remove_vcpus
    assert read(accelerator=Accelerator.KVM).can_remove_vcpus


def test_host_that_says_nothing_has_nothing() -> None:
    nothing = abilities_of(etree.fromstring("<d/>"), etree.fromstring("<c/>"), {}, Accelerator.TCG)
    assert (nothing.has_uefi, nothing.tpm_versions, nothing.cpu_models, nothing.huge_pages) == (False, (), (), ())


def firmware(features: list[str], *, architecture: str = "x86_64") -> dict[str, object]:
    return {
        "interface-types": ["uefi"],
        "targets": [{"architecture": architecture, "machines": ["pc-q35-*"]}],
        "features": features,
    }


def test_firmware_is_read_as_qemu_describes_it_and_nonsense_is_passed_over(tmp_path: Path) -> None:
    own, distribution = tmp_path / "etc", tmp_path / "usr"
    own.mkdir()
    distribution.mkdir()
    (distribution / "40.json").write_text(json.dumps(firmware(["secure-boot", "enrolled-keys", "requires-smm"])))
    (distribution / "50.json").write_text(json.dumps(firmware(["secure-boot"], architecture="aarch64")))
    (distribution / "60.json").write_text("{ not json")
    (distribution / "70.json").write_text("[]")
    read_features = firmware_features
    assert read_features((own, distribution)) == [{"secure-boot", "enrolled-keys", "requires-smm"}]

    (own / "40.json").write_text("")  # how an administrator switches one off
    assert read_features((own, distribution)) == []
    assert read_features((tmp_path / "absent",)) == []


def test_iommu_is_there_if_there_are_groups(tmp_path: Path) -> None:
    assert not has_iommu(tmp_path / "absent")
    assert not has_iommu(tmp_path)
    (tmp_path / "7").mkdir()
    assert has_iommu(tmp_path)


@pytest.mark.parametrize(
    ("flags", "accelerator", "flag"),
    [
        ("fpu vmx", Accelerator.KVM, "vmx"),
        ("fpu svm", Accelerator.KVM, "svm"),
        ("fpu vmx", Accelerator.TCG, "svm"),
    ],
)
def test_flag_for_nested_vms_is_the_processors_own_or_the_emulated_one(
    tmp_path: Path, flags: str, accelerator: Accelerator, flag: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
    assert virtualization_flag(accelerator, cpuinfo) == flag


# -- devices

GPU = """
<device><name>pci_0000_3b_00_0</name><driver><name>{driver}</name></driver>
 <capability type='pci'><class>{code}</class><domain>0</domain><bus>59</bus><slot>0</slot><function>1</function>
  <product id='0x1eb8'>T4</product><vendor id='0x10de'>NVIDIA</vendor>{group}<numa node='1'/>
  <capability type='mdev_types'><type id='nvidia-222'/></capability></capability></device>
"""
GROUP = "<iommuGroup number='9'><address domain='0x0000' bus='0x3b' slot='0x00' function='0x1'/></iommuGroup>"
USB = """
<device><name>usb_1_4</name><capability type='usb_device'><bus>1</bus><device>4</device>
 <product id='0x1666'>Stick</product><vendor id='0x0951'/></capability></device>
"""
MDEV = """
<device><name>mdev_x</name><capability type='mdev'><type id='nvidia-222'/>
 <uuid>4B20D080-1B54-4048-85B3-A6A62D165C01</uuid><iommuGroup number='12'/></capability></device>
"""


def gpu(group: str = GROUP, driver: str = "nvidia", code: str = "0x030000") -> etree._Element:
    return etree.fromstring(GPU.format(group=group, driver=driver, code=code))


def test_pci_device_is_read_with_its_group_and_profiles() -> None:
    device = device_of(gpu(), {})
    assert device is not None
    assert (device.kind, device.address) == (DeviceKind.PCI, "0000:3b:00.1")
    assert (device.vendor_id, device.product_id, device.vendor, device.product) == ("10de", "1eb8", "NVIDIA", "T4")
    assert (device.iommu_group, device.numa_node, device.profiles) == (9, 1, ("nvidia-222",))
    assert device.is_gpu
    assert device.obstacle == ""


@pytest.mark.parametrize(
    ("node", "users", "words"),
    [
        (gpu(group=""), {}, "in no IOMMU group"),
        (gpu(code="0x060400"), {}, "a bridge"),
        (gpu(), {(DeviceKind.PCI, "0000:3b:00.1"): "vm-1"}, "VM vm-1 has it"),
        (gpu(code="0x010802", driver="nvme"), {}, "its driver nvme; bind it to vfio-pci first"),
        (gpu(code="0x020000", driver="ixgbe"), {}, "its driver ixgbe"),
        (etree.fromstring(USB), {(DeviceKind.USB, "1:4"): "vm-2"}, "VM vm-2 has it"),
        (
            etree.fromstring(MDEV),
            {(DeviceKind.MEDIATED, "4b20d080-1b54-4048-85b3-a6a62d165c01"): "vm-3"},
            "VM vm-3 has it",
        ),
    ],
)
def test_device_that_no_vm_can_have_says_why(
    node: etree._Element, users: dict[tuple[DeviceKind, str], str], words: str
) -> None:
    device = device_of(node, users)
    assert device is not None
    assert words in device.obstacle


def test_storage_bound_to_vfio_can_be_passed_on() -> None:
    device = device_of(gpu(code="0x010802", driver="vfio-pci"), {})
    assert device is not None
    assert device.obstacle == ""


def test_other_nodes_are_no_devices() -> None:
    assert device_of(etree.fromstring("<device><capability type='net'/></device>"), {}) is None
    assert device_of(etree.fromstring("<device/>"), {}) is None


class _Library:
    """The two names of libvirt's module that are used."""

    VIR_CONNECT_LIST_NETWORKS_ACTIVE = 2

    class libvirtError(Exception):
        pass


class _Network:
    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name


class _Connection:
    def __init__(self, *names: str, has_driver: bool = True) -> None:
        self._names, self._has_driver = names, has_driver

    def listAllNetworks(self, flags: int) -> list[_Network]:
        assert flags == _Library.VIR_CONNECT_LIST_NETWORKS_ACTIVE
        if not self._has_driver:
            raise _Library.libvirtError
        return [_Network(name) for name in self._names]


def test_active_networks_are_named_in_order_and_a_host_without_a_driver_has_none() -> None:
    assert active_networks(_Connection("lab", "default"), _Library) == ("default", "lab")
    assert active_networks(_Connection(has_driver=False), _Library) == ()
