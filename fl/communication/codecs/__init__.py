"""Codecs, one idea per file; `fl.communication.codec` has the seam, the identity and the chain."""
