"""Tokens: from documents to arrays of ids on disk.

Read `tokenizers` first; `bpe` trains one, `special` finds its special ids. `shards` tokenises a side of a source into
the `cache`, where the next run finds it.
"""
