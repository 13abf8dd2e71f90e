"""Adapters by name, built with peft."""
