"""Benchmarks of speed, memory and start-up time; README.md beside this file describes them."""
