"""Codecs, one idea per file; `fl.communication.codec` has their interface, `chain` combines them."""
