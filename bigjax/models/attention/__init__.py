"""Attention: back ends by name, each declaring what it supports.

Read `backends` first, with the reference that all are tested against; `masks` says who attends to whom, `blocked` never
holds all scores, `kernels` calls those of the chip.
"""
