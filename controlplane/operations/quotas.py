"""Quotas of projects: asked in the transaction that makes a VM, or makes it larger.

What VMs take is summed up from their rows while the project is held, so it is true whatever came before, and nothing
has to be given back. Whoever asks later, on whichever control plane, waits until this transaction has ended, and then
counts what it wrote. A project without a quota is only kept from being removed.
"""

from __future__ import annotations

from dataclasses import astuple

from controlplane.domain import access_errors
from controlplane.domain.access import Place
from controlplane.domain.project import UNLIMITED, Amounts, amounts_of, excess_of, growth
from controlplane.domain.vm import Vm
from controlplane.state.interface import Transaction


async def require_room_for_new(tx: Transaction, vm: Vm) -> None:
    """Check that a VM may be added to its project and folder. Before it is written, and after its node is claimed.

    Raises:
        NotFound: there is no such project, or no such folder in it.
        ResourceExhausted: it is more than the project may have; the error names quota, used and asked.
    """
    project = await tx.hold_place(Place(vm.project_id, vm.folder_id))
    if project is None:
        if vm.folder_id and await tx.get_project(vm.project_id) is not None:
            raise access_errors.folder_not_found(vm.folder_id)
        raise access_errors.project_not_found(vm.project_id)
    if project.quota != UNLIMITED:
        await _require(tx, project.quota, None, vm)


async def require_room_to_grow(tx: Transaction, before: Vm, after: Vm) -> None:
    """Check that a VM may become what it is to be; one that grows in nothing always may. Before it is written.

    Raises:
        ResourceExhausted: as `require_room_for_new`.
    """
    if not growth(before, after):
        return
    project = await tx.hold_place(Place(before.project_id))
    if project is not None and project.quota != UNLIMITED:
        await _require(tx, project.quota, before, after)


async def _require(tx: Transaction, quota: Amounts, before: Vm | None, after: Vm) -> None:
    used = await tx.project_amounts(after.project_id)
    old = Amounts() if before is None else amounts_of(before)
    parts = zip(astuple(used), astuple(old), astuple(amounts_of(after)), strict=True)
    then = Amounts(*(all_of_them - was + is_to_be for all_of_them, was, is_to_be in parts))
    excess = excess_of(quota, then, growth(before, after))
    if excess is not None:
        raise access_errors.quota_exceeded(after.project_id, excess, getattr(used, excess.part))
