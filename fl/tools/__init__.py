"""Tools that execute many runs: sweep (variants over seeds), tune (fastest execution), bench (comparison with other simulators)."""
