"""The simulated hypervisor: a product of its own, which runs a cluster on a laptop and fails as its settings say."""
