"""The error of the data pipeline."""

from bigjax.errors import UserError


class DataError(UserError):
    """Text, a tokenizer or a cache cannot be used as asked; the message names the file or numbers and the remedy."""
