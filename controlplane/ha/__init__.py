"""Decides which nodes are lost, when that is proven, and which VMs are started again where. Pure."""
