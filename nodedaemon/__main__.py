"""`limiquantix-node`, or `python -m nodedaemon`: settles how gRPC forks, and runs `nodedaemon.app`."""

import limiquantix.rpc  # noqa: F401 - before anything imports gRPC
from nodedaemon.app import main

if __name__ == "__main__":
    main()
