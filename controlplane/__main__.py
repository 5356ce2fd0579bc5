"""`limiquantix-controlplane`, or `python -m controlplane`: settles how gRPC works, then runs `controlplane.app`."""

import os

# Before anything imports gRPC, which reads it then. Else threads of its own take turns with ours for every message of
# every connection, and one CPU is not enough for 10,000 hosts that beat every 5 s, each over a connection of its own:
# 592 us a beat, against 440 us in the way it waited before it had those threads. See docs/performance.md.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener,-event_engine_client,-event_engine_callback_cq")

import limiquantix.rpc  # noqa: F401
from controlplane.app import main

if __name__ == "__main__":
    main()
