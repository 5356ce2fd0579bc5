"""Coordination through etcd: a client of the few calls that it takes, and what is built of them."""
