"""Server rules, one per file."""
