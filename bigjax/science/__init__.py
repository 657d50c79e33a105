"""Counting, fitting and comparing: what turns runs into answers."""
