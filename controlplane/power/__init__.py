"""Cuts the power of hosts through their management controllers."""
