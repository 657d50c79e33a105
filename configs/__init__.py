"""Configs by name: each file answers one question and says how to run it and what to expect."""
