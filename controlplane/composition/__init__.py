"""The composition root: what names concrete classes and wires them, for `controlplane.app` to start and stop."""
