"""Tests. Their folders mirror the folders of the packages."""
