"""Balancing: which VMs to move so that the load of the nodes is even. Pure; `services.balancing` acts on it."""
