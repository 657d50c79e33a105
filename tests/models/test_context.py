"""Attention within rows that several devices share, each way, against one device: values and gradients.

A row has four documents or more, one of which goes over every edge between two devices, in the order of the row and in
balance. Float32: a sum of n terms in another order differs by about sqrt(n) machine epsilons of its size; the longest
here have under 2^8 terms (64 keys, 4 heads a kv head).
"""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bigjax import models, sharding
from bigjax.config import ModelConfig
from bigjax.models.attention import context, order
from bigjax.models.attention.backends import reference
from bigjax.models.attention.masks import AttentionError, Mask
from tests.conftest import mesh_of

B, S, H, K = 2, 64, 8, 8
EPSILON = float(np.finfo(np.float32).eps)
TOLERANCE = EPSILON * 2**4
"""1.9e-6, relative to the norm of the array."""

CASES = {
    "2 kv heads": {"kv_heads": 2},
    "1 kv head, a window, a soft cap": {"kv_heads": 1, "window": 11, "softcap": 1.5},
    "8 kv heads, whole rows": {"kv_heads": 8, "packed": False, "window": 20},
}
DEVICES = (2, 4, 8)


def documents(pieces: int) -> np.ndarray:
    """Return rows in which a document goes over each edge between `pieces` parts of a row; the last is padding."""
    edges = np.arange(1, pieces) * (S // pieces)
    starts = [np.isin(np.arange(S), np.append(edges - 1 - row, (5 + row, S - 3))) for row in range(B)]
    segments = 1 + np.cumsum(starts, axis=1).astype(np.int32)
    assert (segments.max(axis=1) >= 4).all() and all((s[edges - 1] == s[edges]).all() for s in segments)
    return np.where(segments == segments.max(axis=1, keepdims=True), 0, segments)


@cache
def arrays(kv_heads: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    shapes = [(B, S, H, K), (B, S, kv_heads, K), (B, S, kv_heads, K), (B, S, H, K)]
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def with_gradients(attend, q, k, v, weight):
    """Return what is mixed, and the gradients of its weighted sum."""
    mixed, pullback = jax.vjp(attend, q, k, v)
    return mixed, *pullback(weight)


@cache
def expected(case: str, pieces: int) -> list[np.ndarray]:
    """Return what one device computes."""
    asked = CASES[case]
    segments = jnp.asarray(documents(pieces)) if asked.get("packed", True) else None
    mask = Mask(segments, asked.get("window"))
    attend = jax.jit(lambda q, k, v: reference(q, k, v, mask, softcap=asked.get("softcap")))
    return [np.asarray(x) for x in with_gradients(attend, *arrays(asked["kv_heads"]))]


def split(case: str, exchange: str, ways: int, balanced: bool, pieces: int, **axes):
    """Return a compiled function, its arguments on the mesh, and the mesh."""
    asked = CASES[case]
    sizes = {"data": 1, "context": ways, "context_exchange": exchange, "allow_replicated": ("kv_heads",)}
    mesh_cfg, mesh = mesh_of(ways * int(np.prod([*axes.values(), 1])), **sizes, **axes)
    cfg = ModelConfig(num_heads=H, num_kv_heads=asked["kv_heads"], d_model=H * K, attention="reference")
    layout = sharding.layout(mesh_cfg, mesh, models.build(cfg).specs, ("context",))
    ordered = (lambda x: order.balance(jnp.asarray(x), ways)) if balanced else jnp.asarray
    names = ("heads", "kv_heads", "kv_heads", "heads")
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(ordered(x), NamedSharding(mesh, layout.act("batch", "seq", name, "head_dim") or P()))
            for x, name in zip(arrays(asked["kv_heads"]), names, strict=True)
        ]
        where = NamedSharding(mesh, layout.act("batch", "seq") or P())
        segments = jax.device_put(ordered(documents(pieces)), where) if asked.get("packed", True) else None

        def run(q, k, v, weight):
            mask = Mask(segments, asked.get("window"))
            how = {"cfg": cfg, "layout": layout, "balanced": balanced, "softcap": asked.get("softcap")}
            return with_gradients(lambda q, k, v: context.attend(q, k, v, mask, **how), q, k, v, weight)

        return jax.jit(run).lower(*placed).compile(), placed, mesh


def assert_as_one_device(case: str, exchange: str, ways: int, balanced: bool, **axes) -> None:
    pieces = 2 * ways if balanced else ways
    run, placed, mesh = split(case, exchange, ways, balanced, pieces, **axes)
    with jax.set_mesh(mesh):
        actual = [np.asarray(order.unbalance(x, ways) if balanced else x) for x in map(jax.device_get, run(*placed))]
    for name, value, right in zip(("mixed", "dq", "dk", "dv"), actual, expected(case, pieces), strict=True):
        assert np.linalg.norm(value - right) <= TOLERANCE * np.linalg.norm(right), name


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("exchange", "balanced"),
    [("gather", True), ("ring", True), ("all_to_all", False), ("gather", False), ("ring", False)],
)
@pytest.mark.parametrize("ways", DEVICES[::-1])
@pytest.mark.parametrize("case", ["1 kv head, a window, a soft cap", "2 kv heads", "8 kv heads, whole rows"])
def test_parts_of_rows_attend_as_whole_rows_do(exchange, balanced, case, ways):
    assert_as_one_device(case, exchange, ways, balanced)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("exchange", "balanced"), [("ring", True), ("all_to_all", False), ("gather", True)])
def test_rows_and_heads_are_split_together(exchange, balanced):
    assert_as_one_device("1 kv head, a window, a soft cap", exchange, 2, balanced, fsdp=2, tensor=2)


@pytest.mark.parametrize("ways", DEVICES)
def test_the_balanced_order_gives_all_devices_as_much_to_do(ways):
    row = np.arange(S)[None]
    mine = np.asarray(order.balance(jnp.asarray(row), ways)).reshape(ways, -1)
    np.testing.assert_array_equal(mine, order.places(S, ways, balanced=True))
    np.testing.assert_array_equal(order.places(S, ways, balanced=False).reshape(-1), row[0])
    # A query at place p sees p + 1 keys; all of them together S (S + 1) / 2.
    assert (mine + 1).sum(axis=1).tolist() == [S * (S + 1) // 2 // ways] * ways
    np.testing.assert_array_equal(order.unbalance(jnp.asarray(mine.reshape(1, S)), ways), row)


def kinds(text: str) -> set[str]:
    """Return the kinds of collectives of float32 arrays in an HLO text."""
    names = r"(all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)"
    return set(re.findall(rf"f32\[[\d,]*\]\S*\)? {names}(?:-start)?\(", text))


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("exchange", "moves"),
    [("ring", {"collective-permute"}), ("gather", {"all-gather", "reduce-scatter"}), ("all_to_all", {"all-to-all"})],
)
def test_what_a_way_sends_is_in_the_program(exchange, moves):
    run, _, _ = split("2 kv heads", exchange, 2, exchange != "all_to_all", 4)
    assert kinds(run.as_text() or "") - {"all-reduce"} in (moves, {*moves} - {"reduce-scatter"})


def test_all_to_all_takes_rows_in_their_own_order_only():
    with pytest.raises(AttentionError, match="in their own order"):
        split("2 kv heads", "all_to_all", 2, True, 4)
