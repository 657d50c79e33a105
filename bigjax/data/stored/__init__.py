"""Tokens that are stored: shards of ids on disk, made here or elsewhere, of any number and size.

Read `layouts` first, which says what the bytes of a shard mean; `megatron` reads and writes that format. `manifest`
keeps what the shards of a folder hold, so that no start reads them, and `corpus` makes one stream of many.
"""
