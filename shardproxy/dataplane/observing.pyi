"""Only the engine uses it."""
