"""What must be kept secret, at rest: sealed with a key that is not in the database."""
