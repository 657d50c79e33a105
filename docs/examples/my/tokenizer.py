"""Bytes, under a name of one's own."""

from bigjax.data.tokens.tokenizers import ByteTokenizer


class Letters(ByteTokenizer):
    """As the bytes are."""
