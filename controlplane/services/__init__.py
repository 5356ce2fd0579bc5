"""Use cases, one file a resource. They know the interfaces of state and daemons, no transport and no database."""
