"""Where a VM should run: a pure decision made from a snapshot of the nodes.

`snapshot` is what a decision sees, `filters` who may take a VM, `scores` who should, `plan` puts them together. The
caller reads the nodes, asks for a plan and claims the capacity; nothing here waits, writes or looks at a clock.
"""
