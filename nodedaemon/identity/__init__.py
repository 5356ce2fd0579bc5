"""Which node this host is: the certificate that it joined with, kept and renewed."""
