"""Durable state behind one interface (`controlplane.state.interface`); SQL stores implement it."""
