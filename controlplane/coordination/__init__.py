"""Who decides, and hints between processes: what may vanish at any moment without harm."""
