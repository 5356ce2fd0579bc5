"""Puts the node daemon's parts together; each module makes what belongs together, and `nodedaemon.app` runs it."""
