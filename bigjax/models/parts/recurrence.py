"""One recurrent layer through time, with the gradient of its recurrent matrix formed once for all steps.

Left to differentiate the loop, JAX adds up that gradient step by step, and sums it over the devices that split the
batch at every one. Here the backward loop keeps the gradients of the gates; one product over steps and rows follows.

Legend: B batch, S sequence (time), D model, E the same at the other end of a matrix, G gates, P sums that a cell forms.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bigjax.sharding import Layout

Sums = Sequence[jax.Array]


class Cell(NamedTuple):
    """The arithmetic of one time step, in float32.

    Attributes:
      tick: takes the sums, each `(B, E)`, and the memory `(B, E)`; returns the new `h`, `(B, E)`, and the memory.
      memory: the part of the state that works feature by feature, and stays where the gates are.
      from_input, from_state: the sums that each gate of the input, and of the state's product, goes into.
    """

    tick: Callable[[Sums, jax.Array], tuple[jax.Array, jax.Array]]
    memory: str
    from_input: tuple[int, ...]
    from_state: tuple[int, ...]

    @property
    def num_sums(self) -> int:
        """How many sums a step forms."""
        return 1 + max(self.from_input + self.from_state)

    def sums(self, inputs_BGE: jax.Array, products_BGE: jax.Array) -> list[jax.Array]:
        """Add what comes from the input to what comes from the state."""
        terms: list[list[jax.Array]] = [[] for _ in range(self.num_sums)]
        for places, gates_BGE in ((self.from_input, inputs_BGE), (self.from_state, products_BGE)):
            for nth, place in enumerate(places):
                terms[place].append(gates_BGE[:, nth])
        return [sum(rest, first) for first, *rest in terms]


def _lstm(sums: Sums, c_BE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gates input, forget, candidate, output (Gal & Ghahramani 2016, equation 4; as `torch.nn.LSTM`)."""
    i, f, g, o = sums
    c_BE = jax.nn.sigmoid(f) * c_BE + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c_BE), c_BE


def _gru(sums: Sums, h_BE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gates reset, update, candidate; the reset gate comes after the product (as `torch.nn.GRU`)."""
    r, z, from_input, from_state = sums
    n = jnp.tanh(from_input + jax.nn.sigmoid(r) * from_state)
    z = jax.nn.sigmoid(z)
    h_BE = (1 - z) * n + z * h_BE
    return h_BE, h_BE


CELLS = {
    "lstm": Cell(_lstm, "c", (0, 1, 2, 3), (0, 1, 2, 3)),
    "gru": Cell(_gru, "h", (0, 1, 2), (0, 1, 3)),
}


class Saved(NamedTuple):
    """What the backward pass needs of the forward one: the first three step by step."""

    sums_SBPE: jax.Array
    memory_SBE: jax.Array
    read_SBD: jax.Array
    recurrent_DGE: jax.Array
    bias_E: jax.Array | None
    mask_BD: jax.Array | None
    starts_SB: jax.Array


def through_time(
    cell: Cell,
    recurrent_DGE: jax.Array,
    bias_E: jax.Array | None,
    inputs_SBGE: jax.Array,
    state: dict[str, jax.Array],
    mask_BD: jax.Array | None,
    starts_SB: jax.Array,
    layout: Layout,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return what a layer writes at each step, `(S, B, D)` in the dtype of the inputs, and its state afterwards.

    Args:
      recurrent_DGE: multiplies the state, in the compute dtype; `bias_E` is added to the product of the last gate.
      inputs_SBGE: the part of the gates that does not wait for the state.
      state: float32 `(B, D)` before the segment: `h` and, where the cell has one, its other memory.
      mask_BD: multiplies `h` before each product (dropout); no gradient.
      starts_SB: where the state starts afresh.
    """
    dtype = inputs_SBGE.dtype

    def forward(recurrent_DGE, bias_E, inputs_SBGE, h_BD, memory_BE, mask_BD, starts_SB):
        def step(before, now):
            inputs_BGE, starts_B = now
            h_BD, memory_BE = (jnp.where(starts_B[:, None], 0.0, s) for s in before)
            read_BD = (h_BD if mask_BD is None else h_BD * mask_BD).astype(dtype)
            products_BGE = jnp.einsum(
                "BD,DGE->BGE",
                read_BD,
                recurrent_DGE,
                preferred_element_type=jnp.float32,
                out_sharding=layout.act("batch", "gates", "mlp"),
            )
            if bias_E is not None:
                products_BGE = products_BGE.at[:, -1].add(bias_E)
            sums = cell.sums(inputs_BGE.astype(jnp.float32), products_BGE)
            h_BE, after_BE = cell.tick(sums, memory_BE)
            h_BD = layout.place(h_BE, "batch", "vector")
            return (h_BD, after_BE), (h_BD.astype(dtype), (jnp.stack(sums, axis=1), memory_BE, read_BD))

        after, (out_SBD, kept) = jax.lax.scan(step, (h_BD, memory_BE), (inputs_SBGE, starts_SB))
        return (out_SBD, *after), Saved(*kept, recurrent_DGE, bias_E, mask_BD, starts_SB)

    def backward(saved: Saved, gradients):
        d_out_SBD, d_h_BD, d_memory_BE = gradients
        mask_BE = None if saved.mask_BD is None else layout.place(saved.mask_BD, "batch", "mlp")

        def step(d_after, now):
            d_out_BE, sums_BPE, memory_BE, starts_B = now
            d_h_BE, d_memory_BE = d_after
            _, pull = jax.vjp(cell.tick, [sums_BPE[:, nth] for nth in range(cell.num_sums)], memory_BE)
            d_sums, d_memory_BE = pull((d_h_BE + d_out_BE, d_memory_BE))
            d_products_BGE = jnp.stack([d_sums[nth] for nth in cell.from_state], axis=1).astype(dtype)
            d_read_BE = jnp.einsum(
                "BGE,DGE->BD",
                d_products_BGE,
                saved.recurrent_DGE,
                preferred_element_type=jnp.float32,
                out_sharding=layout.act("batch", "mlp"),
            )
            d_h_BE = d_read_BE if mask_BE is None else d_read_BE * mask_BE
            d_before = tuple(jnp.where(starts_B[:, None], 0.0, d) for d in (d_h_BE, d_memory_BE))
            return d_before, jnp.stack(d_sums, axis=1).astype(dtype)

        # Whatever is added to `h` after the loop is whole on every device along the gates: each goes on with its part.
        d_out_SBE = layout.place(d_out_SBD, "seq", "batch", "mlp")
        d_after = (layout.place(d_h_BD, "batch", "mlp"), d_memory_BE)
        (d_h_BE, d_memory_BE), d_sums_SBPE = jax.lax.scan(
            step, d_after, (d_out_SBE, saved.sums_SBPE, saved.memory_SBE, saved.starts_SB), reverse=True
        )
        d_products_SBGE = _gates(d_sums_SBPE, cell.from_state)
        where = layout.act("embed", "gates", "mlp")
        d_recurrent_DGE = jnp.einsum("SBD,SBGE->DGE", saved.read_SBD, d_products_SBGE, out_sharding=where)
        d_bias_E = None
        if saved.bias_E is not None:
            d_bias_E = jnp.sum(d_products_SBGE[:, :, -1], axis=(0, 1), dtype=saved.bias_E.dtype)
        d_h_BD = layout.place(d_h_BE, "batch", "vector")
        return d_recurrent_DGE, d_bias_E, _gates(d_sums_SBPE, cell.from_input), d_h_BD, d_memory_BE, None, None

    run = jax.custom_vjp(lambda *args: forward(*args)[0])
    run.defvjp(forward, backward)
    memory_BE = layout.place(state[cell.memory], "batch", "mlp")
    out_SBD, h_BD, memory_BE = run(recurrent_DGE, bias_E, inputs_SBGE, state["h"], memory_BE, mask_BD, starts_SB)
    after = {"h": h_BD, cell.memory: layout.place(memory_BE, "batch", "vector")}
    return out_SBD, after | {"h": h_BD}


def _gates(d_sums_SBPE: jax.Array, places: tuple[int, ...]) -> jax.Array:
    """Return the gradients of gates `(S, B, G, E)` from those of the sums that they went into."""
    if places == tuple(range(d_sums_SBPE.shape[2])):
        return d_sums_SBPE
    return jnp.stack([d_sums_SBPE[:, :, nth] for nth in places], axis=2)
