"""What passes between server and clients: codecs, sizes on a real wire, the ledger."""
