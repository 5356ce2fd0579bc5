"""Durable operations: what callers asked for, recorded before it begins and carried to an end by any process.

`steps` says what an operation is made of, `runner` takes one through its steps, `worker` decides which process does,
`desk` takes orders and waits for outcomes. What the steps of VMs do is in the `vm_*` modules.
"""
