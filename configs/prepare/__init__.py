"""Preparations by name: each file declares the steps from raw records of one kind to a source."""
