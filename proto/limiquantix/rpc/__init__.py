"""What every process needs to speak the contract over gRPC: status, validation, call pipeline, servers, channels.

To be imported before anything imports gRPC, which reads then what is settled here.
"""

import os

# Else a program that is started by a fork, as uvloop does it, runs gRPC's handlers and threads until its exec. They
# read from connections of the parent, which break, or end the program before it begins, and now and then (seen once in
# 80,000 starts) the fork never returns. Who only starts programs needs none of them:
# https://github.com/grpc/grpc/blob/master/doc/fork_support.md
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
