"""Federated recommendation on MovieLens."""
