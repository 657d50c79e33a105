"""What a query may see, what is dropped, and the error of asking a back end for more than it can do.

Legend: B batch, S query positions, T key positions.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bigjax.errors import UserError


class AttentionError(UserError):
    """The named attention back end cannot do what the model asks for."""


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see: those at or before it, in its document, and not `window` or more back.

    Attributes:
      causal: False lets a query see what comes after it too.
      segments_BS: document number of each position, 0 for padding; None means one document a row.
      window: number of most recent positions a query sees, itself included; None means all.
      key_segments_BT: 0 for padding, where the keys are another sequence (cross-attention); all others are seen.
    """

    segments_BS: jax.Array | None = None
    window: int | None = None
    causal: bool = True
    key_segments_BT: jax.Array | None = None

    def __post_init__(self):
        if self.window is not None and not self.causal:
            raise ValueError(f"a window of {self.window} tokens counts back from each query: it needs causal=True")

    def dense(self, num_queries: int, first_query: int = 0, num_keys: int | None = None) -> jax.Array:
        """Return the mask as bools, `(1 or B, 1, 1 or S, T)`, for a block of queries."""
        if self.key_segments_BT is not None:
            return (self.key_segments_BT > 0)[:, None, None]
        query_S1 = first_query + jnp.arange(num_queries)[:, None]
        key_T = jnp.arange(num_keys or num_queries)
        allowed = key_T <= query_S1 if self.causal else jnp.ones((num_queries, key_T.size), bool)
        if self.window is not None:
            allowed &= key_T > query_S1 - self.window
        if self.segments_BS is None:
            return allowed[None, None]
        queries = self.segments_BS[:, first_query : first_query + num_queries, None]
        keys = self.segments_BS[:, None, : key_T.size]
        return (allowed & (queries == keys))[:, None]


@dataclass(frozen=True)
class ProbsDropout:
    """Dropout of the attention probabilities: rate, key, and the global row of each example."""

    rate: float
    key: jax.Array
    rows_B: jax.Array
