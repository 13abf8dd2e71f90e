"""Messages between server and clients: codecs, the encoding of groups, sizes on the wire, and the ledger."""
