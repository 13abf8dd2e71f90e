"""Read, build, check and write configurations."""
