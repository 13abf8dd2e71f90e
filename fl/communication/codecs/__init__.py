"""Codecs, one idea per file; `fl.codec` has the seam, the identity and the chain."""
