"""Every workflow of this program."""

from __future__ import annotations

from controlplane.domain.migration import MigrationRules
from controlplane.operations.protection import ProtectVm
from controlplane.operations.room_rules import RoomRules
from controlplane.operations.steps import Workflows
from controlplane.operations.vm_cdroms import AttachCdrom, ChangeMedium, DetachCdrom
from controlplane.operations.vm_clone import CloneVm
from controlplane.operations.vm_disks import AttachDisk, DetachDisk, ResizeDisk, UpdateDisk
from controlplane.operations.vm_failover import FailoverVm, FinishFailover
from controlplane.operations.vm_guest_power import GuestShutdown
from controlplane.operations.vm_life import CleanUpVm, CreateVm, DeleteVm, TakeOverVm
from controlplane.operations.vm_migration import ChooseTarget, MigrateVm, take_named
from controlplane.operations.vm_migration_settle import SettleMigration
from controlplane.operations.vm_nics import AttachNic, DetachNic, UpdateNic
from controlplane.operations.vm_power import PauseVm, RebootVm, ResumeVm, StartVm, StopVm, SuspendVm
from controlplane.operations.vm_release import ReleaseVm
from controlplane.operations.vm_relocate import RelocateVm
from controlplane.operations.vm_settle import SettleDevices
from controlplane.operations.vm_snapshots import CreateSnapshot, DeleteSnapshot, RevertToSnapshot
from controlplane.operations.vm_start_elsewhere import StartElsewhere
from controlplane.operations.vm_update import ConvertVm, UpdateVm

WORKFLOWS = Workflows(
    (
        CreateVm(),
        DeleteVm(),
        TakeOverVm(),
        CleanUpVm(),
        UpdateVm(),
        ConvertVm(),
        CloneVm(),
        StartVm(),
        StopVm(),
        RebootVm(),
        PauseVm(),
        ResumeVm(),
        SuspendVm(),
        GuestShutdown(),
        CreateSnapshot(),
        RevertToSnapshot(),
        DeleteSnapshot(),
        AttachDisk(),
        DetachDisk(),
        ResizeDisk(),
        UpdateDisk(),
        AttachNic(),
        DetachNic(),
        UpdateNic(),
        AttachCdrom(),
        DetachCdrom(),
        ChangeMedium(),
        SettleDevices(),
        MigrateVm(take_named, MigrationRules()),
        SettleMigration(),
        FailoverVm(take_named),
        FinishFailover(),
        RelocateVm(take_named),
        StartElsewhere(take_named),
        ReleaseVm(),
        ProtectVm(),
    )
)


def with_scheduler(
    choose: ChooseTarget, choose_after_failure: ChooseTarget, rules: MigrationRules, room: RoomRules
) -> Workflows:
    """Return all workflows, with migrations whose target is chosen, failovers whose target is looked at again, and
    changes of VMs that leave the room that is kept."""
    return WORKFLOWS.with_(
        MigrateVm(choose, rules),
        FailoverVm(choose_after_failure),
        RelocateVm(choose_after_failure),
        StartElsewhere(choose_after_failure),
        UpdateVm(room),
        RevertToSnapshot(room),
    )
