"""The cluster's certificate authority: who is which machine."""
