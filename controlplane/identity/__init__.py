"""People and programs: how they prove who they are, and what their calls carry afterwards."""
