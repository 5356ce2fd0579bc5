"""Talking to node daemons: the interface services see, and the gRPC pool behind it."""
