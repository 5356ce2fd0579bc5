"""What of a VM's first-boot configuration is shown, and how what is not shown is kept when it comes back.

Whoever reads a VM gets its spec without what may be secret, and a list of what was left out. Sent back with that list,
it means the same as before.
"""

from __future__ import annotations

from typing import Final

from limiquantix.compute.v1.vm_pb2 import ProvisioningConfig, VmSpec

WITHHELD: Final = {
    "cloud_init": ("user_data", "meta_data", "network_config", "vendor_data"),
    "ignition": ("config",),
    "sysprep": ("unattend_xml", "product_key", "domain_password"),
}
"""Fields that may hold a secret, by method."""


def shown(spec: VmSpec) -> None:
    """Take out of a spec, which is the caller's own, what is not shown, and list it."""
    if not spec.HasField("provisioning"):
        return
    config = spec.provisioning
    config.ClearField("withheld")
    method = config.WhichOneof("method")
    if method is None:
        return
    texts = getattr(config, method)
    for name in WITHHELD[method]:
        if getattr(texts, name):
            config.withheld.append(f"{method}.{name}")
            texts.ClearField(name)


def with_kept(old: VmSpec, new: VmSpec) -> VmSpec:
    """Return a new spec with what it lists as withheld filled in from the old one, and without that list."""
    if not new.provisioning.withheld:
        return new
    full = VmSpec()
    full.CopyFrom(new)
    _fill_in(old.provisioning, full.provisioning)
    return full


def accepted(config: ProvisioningConfig) -> None:
    """Drop from a first-boot configuration, which is the caller's own, what only answers say."""
    config.ClearField("withheld")


def _fill_in(old: ProvisioningConfig, new: ProvisioningConfig) -> None:
    method = new.WhichOneof("method")
    if method is not None and method == old.WhichOneof("method"):
        before, after = getattr(old, method), getattr(new, method)
        for name in WITHHELD[method]:
            if f"{method}.{name}" in new.withheld and not getattr(after, name):
                setattr(after, name, getattr(before, name))
    new.ClearField("withheld")
