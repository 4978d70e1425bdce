"""Many cache servers behind one door."""

__version__ = "0.1.0"
