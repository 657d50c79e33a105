"""The order in which the tokens of a row lie on the mesh axis `context`, and which token stands where.

Where every query sees all before it, the device with the end of a row would have the most to do. In balance a row is
cut into 2 C pieces and device i of C has the pieces i and 2 C - 1 - i (Grattafiori et al. 2024, section 3.3.2).

Legend: B batch, S sequence of a row, C devices along `context`, P pieces of a row on a device.
"""

import jax
import jax.numpy as jnp
import numpy as np


def balance(x: jax.Array, ways: int) -> jax.Array:
    """Return whole rows `(B, S, ...)` in the order in which devices hold them in balance."""
    B, S, *rest = x.shape
    halves = x.reshape(B, 2, ways, S // (2 * ways), *rest)
    return jnp.stack([halves[:, 0], jnp.flip(halves[:, 1], axis=1)], axis=2).reshape(x.shape)


def unbalance(x: jax.Array, ways: int) -> jax.Array:
    """Return what `balance` was given."""
    B, S, *rest = x.shape
    pairs = x.reshape(B, ways, 2, S // (2 * ways), *rest)
    return jnp.stack([pairs[:, :, 0], jnp.flip(pairs[:, :, 1], axis=1)], axis=1).reshape(x.shape)


def places(seq_len: int, ways: int, balanced: bool) -> np.ndarray:
    """Return the place in its row of each token that each device has, `(C, S / C)`."""
    row = np.arange(seq_len)
    if balanced:
        first, second = row.reshape(2, ways, -1)
        row = np.concatenate([first, second[::-1]], axis=1)
    return row.reshape(ways, -1)
