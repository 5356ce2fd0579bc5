"""Runs scenarios of failing clusters through the pure decision, with a simulated site that obeys it."""
