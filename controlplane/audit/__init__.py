"""The audit trail: written before a change begins, completed when it ended, and chained so that gaps are noticed."""
