"""Sessions: the rules that store and adapters share. Pure."""
