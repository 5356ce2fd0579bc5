"""What a clone is to be: its source's spec with an identity of its own, and what was asked for beyond that."""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.domain import provisioning
from controlplane.domain.vm import Vm
from controlplane.domain.vm_spec import MakeId, MakeMac, filled_in
from limiquantix.compute.v1.vm_pb2 import DiskDevice, ProvisioningConfig, TemplateConfig, VmSpec
from limiquantix.errors import FieldViolation


def cloned_spec(
    source: Vm,
    clone_type: TemplateConfig.CloneType.ValueType,
    wanted: ProvisioningConfig | None,
    make_id: MakeId,
    make_mac: MakeMac,
) -> VmSpec:
    """Return the spec of a clone: devices, ids and MAC addresses are new, so is the console's password.

    Args:
        wanted: its first-boot configuration; None takes the source's, but not the host name in it.
    """
    spec = VmSpec()
    spec.CopyFrom(source.spec)
    spec.display.ClearField("password")
    if not source.spec.HasField("display"):
        spec.ClearField("display")
    for drive in spec.cdroms:
        drive.id = ""
    for nic in spec.nics:
        nic.id = nic.mac_address = ""
    spec.ClearField("template")
    spec.template.clone_type = clone_type
    if source.spec.template.is_template:
        spec.template.source_template_id = source.id
    else:
        spec.template.source_vm_id = source.id
    for disk in spec.disks:
        source_id, disk.id = disk.id, make_id()
        spec.template.disk_sources[disk.id] = source_id
        _detach_from_image(disk, clone_type)
    if wanted is not None:
        spec.provisioning.CopyFrom(wanted)
    elif spec.provisioning.HasField("cloud_init"):
        spec.provisioning.cloud_init.hostname = ""
    if spec.HasField("provisioning"):
        provisioning.accepted(spec.provisioning)
    return filled_in(spec, make_id, make_mac)


def _detach_from_image(disk: DiskDevice, clone_type: TemplateConfig.CloneType.ValueType) -> None:
    """Forget the image that the source's disk started from, unless it is what says how large the disk is."""
    if disk.size_gib:
        disk.backing_file = disk.source_file = ""
        disk.ClearField("source_format")
    if clone_type == TemplateConfig.LINKED:
        disk.format = DiskDevice.QCOW2  # what refers to another image has to be


def refine(spec: VmSpec, asked: VmSpec, make_id: MakeId, make_mac: MakeMac) -> VmSpec:
    """Return a clone's spec with what a request for a VM from a template says; see `CreateVMRequest.template_id`."""
    full = VmSpec()
    full.CopyFrom(spec)
    for field, value in asked.ListFields():
        name = field.name
        if name in ("disks", "template"):
            continue
        if field.is_repeated:
            full.ClearField(name)  # type: ignore[arg-type]
            getattr(full, name).extend(value)
        elif field.message_type is not None:
            getattr(full, name).CopyFrom(value)
        else:
            setattr(full, name, value)
    for ours, wanted in zip(full.disks, asked.disks, strict=False):
        ours.size_gib = max(ours.size_gib, wanted.size_gib)
    full.disks.extend(asked.disks[len(full.disks) :])
    return filled_in(full, make_id, make_mac)


def refinement_faults(source: VmSpec, asked: VmSpec, path: str = "spec") -> Iterator[FieldViolation]:
    """List what of a request does not fit its template."""
    for index, (theirs, wanted) in enumerate(zip(source.disks, asked.disks, strict=False)):
        if 0 < wanted.size_gib < theirs.size_gib:
            message = f"is smaller than the template's {theirs.size_gib} GiB; disks are only enlarged"
            yield FieldViolation(f"{path}.disks[{index}].size_gib", message)
        if wanted.backing_file or wanted.source_file or wanted.volume_id:
            yield FieldViolation(f"{path}.disks[{index}]", "is a disk of the template; only its size can be given here")


def request_faults(spec: VmSpec, template_id: str, path: str = "spec") -> Iterator[FieldViolation]:
    """List what a request to create a VM says of templates and must not."""
    template = spec.template
    if template.is_template:
        yield FieldViolation(f"{path}.template.is_template", "a new VM is no template; create it, then convert it")
    for name in ("source_vm_id", "disk_sources"):
        if getattr(template, name):
            yield FieldViolation(f"{path}.template.{name}", "is written by the system; leave it out")
    if template.source_template_id not in ("", template_id):
        yield FieldViolation(f"{path}.template.source_template_id", "must be the same as template_id")
    if template.clone_type != TemplateConfig.FULL and not template_id:
        yield FieldViolation(f"{path}.template.clone_type", "needs a template_id")


def is_same_but_for_role(old: VmSpec, new: VmSpec) -> bool:
    """Tell whether two specs differ in nothing but whether the VM is a template."""
    specs = []
    for each in (old, new):
        spec = VmSpec()
        spec.CopyFrom(each)
        spec.template.is_template = False
        specs.append(spec)
    return specs[0] == specs[1]


def template_faults(old: VmSpec, new: VmSpec) -> Iterator[FieldViolation]:
    """List what an update says of templates and must not: only whether the VM is one can be changed."""
    before, after = TemplateConfig(), TemplateConfig()
    before.CopyFrom(old.template)
    after.CopyFrom(new.template)
    before.is_template = after.is_template = False
    if before != after:
        yield FieldViolation("spec.template", "only is_template can be changed; the rest says where the VM came from")
