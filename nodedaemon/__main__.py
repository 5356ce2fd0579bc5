"""`python -m nodedaemon` is `limiquantix-node`."""

from nodedaemon.app import main

main()
