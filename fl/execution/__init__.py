"""Who runs client work, where and how: serial, on Ray, one client at a time or many together."""
