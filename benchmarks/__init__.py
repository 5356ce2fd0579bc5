"""What the product costs, measured on the machine at hand; run with `python -m benchmarks` or `make bench`.

Figures of one machine say little about another and less on a shared one, so every figure here is a ratio: what the
product takes, divided by what the thing below it takes alone (libvirt, a bare gRPC server), in one run, in turns.
"""

import os

# Before anything imports gRPC, which else notes each process that is started while a channel is open.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
