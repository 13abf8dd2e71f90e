"""Client algorithms, one per file."""
