"""Data sets as dicts of arrays, loaders by name, and partitions of their rows among clients."""
