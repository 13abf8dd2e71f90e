"""Adapters by name, made with peft."""
