"""The libvirt backend: QEMU guests under KVM, or emulated. The only place that knows libvirt and its XML.

Nothing here imports libvirt-python before a `LibvirtHypervisor` is made, so every module can be read on any machine.
"""
