"""Figures as files, one module for each kind of figure."""
