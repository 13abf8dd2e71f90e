"""Tools that execute many runs: sweep (variants over seeds), tune (fastest execution), bench (other simulators)."""
