"""The error of preparations."""

from bigjax.errors import UserError


class PrepareError(UserError):
    """Records cannot be prepared as asked; the message names the file, the step or the option, and the remedy."""
