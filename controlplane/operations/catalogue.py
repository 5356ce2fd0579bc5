"""Every workflow of this program."""

from __future__ import annotations

from controlplane.operations.steps import Workflows
from controlplane.operations.vm_life import CleanUpVm, CreateVm, DeleteVm, TakeOverVm
from controlplane.operations.vm_power import PauseVm, RebootVm, ResumeVm, StartVm, StopVm
from controlplane.operations.vm_update import UpdateVm

WORKFLOWS = Workflows(
    (
        CreateVm(),
        DeleteVm(),
        TakeOverVm(),
        CleanUpVm(),
        UpdateVm(),
        StartVm(),
        StopVm(),
        RebootVm(),
        PauseVm(),
        ResumeVm(),
    )
)
