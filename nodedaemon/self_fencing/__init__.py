"""How a host makes sure that no protected VM runs on it when its lease has ended; see decision 23."""
