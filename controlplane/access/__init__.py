"""Who calls, what they may do, and the gate that asks: everything here runs before a service does."""
