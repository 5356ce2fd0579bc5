"""The hypervisor layer: one abstract interface, backends behind it, no knowledge of the wire."""
