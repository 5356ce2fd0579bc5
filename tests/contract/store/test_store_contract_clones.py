"""Store contract: which VMs are built upon another one's disks."""

from __future__ import annotations

from controlplane.state.interface import Store
from limiquantix.compute.v1.vm_pb2 import TemplateConfig, VmSpec
from tests.support.builders import make_id, make_vm
from tests.support.stores import add


def spec_of(template_id: str, clone_type: TemplateConfig.CloneType.ValueType) -> VmSpec:
    return VmSpec(template=TemplateConfig(source_template_id=template_id, clone_type=clone_type))


async def test_linked_clones_of_a_template_are_found_oldest_first_and_no_others(store: Store) -> None:
    template, other_id = make_vm(), make_id()
    first, second = (make_vm(spec=spec_of(template.id, TemplateConfig.LINKED)) for _ in range(2))
    full = make_vm(spec=spec_of(template.id, TemplateConfig.FULL))
    elsewhere = make_vm(spec=spec_of(other_id, TemplateConfig.LINKED))
    await add(store, second, template, full, first, elsewhere)

    found = await store.read(lambda tx: tx.linked_clones(template.id))
    assert list(found) == [first.id, second.id]
    await store.run(lambda tx: tx.delete_vm(first.id))
    assert list(await store.read(lambda tx: tx.linked_clones(template.id))) == [second.id]
    assert list(await store.read(lambda tx: tx.linked_clones(make_id()))) == []
