"""Tokens: from documents to arrays of ids on disk.

Read `tokenizers` first; `beside` is what belongs to its file, `bpe` trains one, `special` finds its special ids.
`shards` tokenises a side of a source into the `cache`, where the next run finds it.
"""
