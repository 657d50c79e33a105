"""Rows: one side of a source, cut into rows of equal shape; what each kind of task reads.

Read `packed` first: the protocol `Rows`, and rows of plain text. Then one file a kind: `masking` and `sentence_pairs`
(masked tokens), `labelled`, `tagged` and `answers` (labels of texts, words and places), `pairs` and `spans` (a text to
read and one to write). `packing` and `windows` cut a stream of tokens.
"""
