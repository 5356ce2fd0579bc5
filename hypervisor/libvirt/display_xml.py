"""The part of a domain's definition that a person sees: its display, the card behind it, and how a hand points at it.

Source of every element: https://libvirt.org/formatdomain.html, "Graphical framebuffers" and "Video devices".
"""

from __future__ import annotations

from lxml import etree

from hypervisor.guest_profiles import GuestFamily
from hypervisor.hardware import Video, VideoModel
from hypervisor.libvirt.device_xml import add
from hypervisor.types import VmConfig


def add_display(devices: etree._Element, config: VmConfig, vnc_password: str) -> None:
    """Add a VM's display, or what a VM without one has in its place.

    A display listens on a UNIX socket in the directory that libvirt makes for the domain. A TCP port could be taken by
    anything else on the host just before QEMU binds it, and every local user could connect to it.

    Args:
        vnc_password: for a display whose configuration leaves the password to us.
    """
    console = config.vnc or config.spice
    if console is None:
        model = "qemu-xhci" if config.hardware.usb_devices else "none"
        add(devices, "controller", {"type": "usb", "index": "0", "model": model})
        return
    _add_usb(devices, config)
    add(devices, "input", {"type": "tablet", "bus": "usb"})
    graphics = add(devices, "graphics", {"type": "vnc" if config.vnc is not None else "spice"})
    if password := console.password or vnc_password:
        graphics.set("passwd", password)
    add(graphics, "listen", {"type": "socket"})
    add(add(devices, "video"), "model", _video(config.hardware.video))


def _add_usb(devices: etree._Element, config: VmConfig) -> None:
    """Add a USB controller that the guest has a driver for: older Windows knows none for USB 3."""
    if config.hardware.guest is not GuestFamily.WINDOWS_LEGACY:
        add(devices, "controller", {"type": "usb", "index": "0", "model": "qemu-xhci"})
        return
    add(devices, "controller", {"type": "usb", "index": "0", "model": "ich9-ehci1"})
    for number in (1, 2, 3):
        companion = {"type": "usb", "index": "0", "model": f"ich9-uhci{number}"}
        add(add(devices, "controller", companion), "master", {"startport": str(2 * (number - 1))})


def _video(video: Video) -> dict[str, str]:
    """Describe the graphics card; each model says its memory in its own way, and virtio's takes the guest's."""
    model = {"type": video.model.value}
    if video.memory_mib:
        kib = str(video.memory_mib * 1024)
        if video.model is VideoModel.QXL:
            # Where the two screens' worth of surfaces go; what the guest shows is a quarter of it, as by default.
            model |= {"ram": kib, "vram": kib, "vgamem": str(max(video.memory_mib // 4, 1) * 1024)}
        elif video.model is not VideoModel.VIRTIO:
            model["vram"] = kib
    if video.head_count > 1:
        model["heads"] = str(video.head_count)
    return model
