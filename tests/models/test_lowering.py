"""Every config, in full size, lowers its training step for 64 TPUs and for 64 GPUs that need not exist."""

import re
from collections.abc import Iterator
from math import lcm, prod
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bigjax import config, params
from bigjax.config import Config
from bigjax.preflight.plan import program
from bigjax.preflight.plan.program import Program
from bigjax.sharding import REPLICATION_LIMIT_BYTES, ShardingError
from bigjax.tasks import named_task
from tests.on_meshes import abstract_mesh, by_family, discovered, distinct

CONFIGS = distinct(discovered())
SPLITS = [(2, 8, 4), (4, 8, 2), (4, 4, 4), (8, 4, 2), (16, 2, 2)]
"""64 devices along data, fsdp and tensor, most wanted first: every axis is at work, and parameters are split the most.
For a sparse model half of those along fsdp are along expert instead.
"""


def first_fit(cfg: Config) -> Program:
    """Return the program of `cfg` on the first of `SPLITS` that its sizes allow, with a batch that it divides."""
    problems = []
    for data, fsdp, tensor in SPLITS:
        expert = 2 if cfg.model.moe.num_experts else 1
        axes = {"data": data, "fsdp": fsdp // expert, "expert": expert, "tensor": tensor}
        batch_size = lcm(cfg.train.global_batch_size, data * fsdp * cfg.train.num_microbatches)
        wide = config.replace(cfg, mesh=axes, train={"global_batch_size": batch_size})
        try:
            return program.build(wide, abstract_mesh(wide.mesh, data * fsdp * tensor))
        except ShardingError as problem:
            problems.append(str(problem))
    raise AssertionError(f"no split fits: {problems}")


def axes_of(x: Any) -> set[str]:
    """Return the mesh axes that split an abstract array."""
    entries = [entry if isinstance(entry, tuple) else (entry,) for entry in x.sharding.spec]
    return {axis for entry in entries for axis in entry if axis is not None}


def arrays_in(jaxpr: Any) -> Iterator[Any]:
    """Yield the type of every intermediate array whose sharding is part of it.

    Those inside `shard_map` are one device's part; those inside a gather with an `out_sharding` are up to the compiler.
    """
    for equation in jaxpr.eqns:
        types = [variable.aval for variable in equation.outvars]
        yield from (x for x in types if hasattr(x, "sharding") and x.sharding.mesh.are_all_axes_explicit)
        if equation.primitive.name != "shard_map":
            for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
                if hasattr(value, "eqns"):
                    yield from arrays_in(value)


@pytest.mark.parametrize("name", by_family(CONFIGS))
def test_every_config_lowers_with_its_batch_split(name):
    cfg = CONFIGS[name]
    while cfg.train.global_batch_size in (
        cfg.data.seq_len,
        cfg.model.num_heads,
        cfg.model.num_heads * cfg.model.head_dim,
        cfg.model.d_model if named_task(cfg).unit == "rows" else 0,
    ):
        # A shape must tell rows from positions, heads and all their features, below.
        cfg = config.replace(cfg, train={"global_batch_size": 2 * cfg.train.global_batch_size})
    lowering = first_fit(cfg)
    traced = lowering.trace()
    rows, length = lowering.cfg.train.global_batch_size, lowering.cfg.data.seq_len
    # A row is so many tokens, or one record.
    row = (rows, length) if named_task(cfg).unit == "tokens" else (rows,)
    inputs = sum(x.shape[: len(row)] == row and (x.ndim == len(row) or len(row) == 1) for x in lowering.batch.values())
    inputs -= cfg.model.family == "rnn" and "positions" in lowering.batch  # it reads none, so none are handed over
    assert inputs >= 2
    activations = [x for x in arrays_in(traced.jaxpr) if x.shape[: len(row)] == row and x.ndim > 1]
    assert len(activations) > (50 if len(row) == 2 else 20)
    batch = lowering.layout.over("batch")
    assert batch[:2] == ("data", "fsdp")
    whole = [x for x in activations if not set(batch) <= axes_of(x)]
    # Token ids go to all devices that have some of a table's columns; what these find comes back.
    ids = [x for x in whole if jnp.issubdtype(x.dtype, jnp.integer) and set(batch) - axes_of(x) == {"fsdp"}]
    assert len(ids) <= 2 and len(ids) == len(whole)
    for platform in ("tpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        shape = f"{rows}x{length}" if len(row) == 2 else rf"{rows}(?:x\d+)?"
        found = re.findall(rf"%arg\d+: tensor<{shape}x[if]32> {{[^%]*?<@mesh, \[(.*?)\]>", text)
        split = ", ".join(f'"{axis}"' for axis in batch)
        assert [one.removesuffix(", {}") for one in found] == [f"{{{split}}}"] * inputs


@pytest.mark.parametrize("name", by_family(CONFIGS))
def test_every_large_array_of_the_state_is_split_over_fsdp(name):
    lowering = first_fit(config.replace(CONFIGS[name], optim={"ema_decay": 0.99}))

    def splits(path: str) -> set[str]:
        # Adafactor's means over the axis that fsdp splits have only the others left.
        return {"fsdp", "expert", *(["tensor"] if "/v_" in path else [])}

    whole = [
        (path, x.shape)
        for path, x in params.names(lowering.state).items()
        if prod(x.shape) * x.dtype.itemsize > REPLICATION_LIMIT_BYTES and not axes_of(x) & splits(path)
    ]
    assert whole == []
    for axis in lowering.layout.over("batch"):
        assert lowering.layout.sizes[axis] > 1


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lion", "muon", "adafactor"])
def test_optimizer_state_lies_where_its_parameters_lie(optimizer):
    lowering = first_fit(config.replace(CONFIGS["gpt:gpt3-175b"], optim={"name": optimizer, "ema_decay": 0.99}))
    stored = params.names(lowering.state.params)
    moments = dict.fromkeys(stored, 0)
    for path, x in {**params.names(lowering.state.opt_state), **params.names(lowering.state.ema)}.items():
        owner = next((name for name in stored if f"/{name}/" in f"/{path}/"), None)
        if owner is not None and x.shape == stored[owner].shape:
            moments[owner] += 1
            assert x.sharding.spec == stored[owner].sharding.spec, path
        elif optimizer == "adafactor" and prod(x.shape) * 4 > REPLICATION_LIMIT_BYTES:
            assert axes_of(x), f"{path} {x.shape}, means over rows or columns, is whole on every device"
        else:
            assert optimizer == "adafactor" or prod(x.shape) < 100, f"{path} {x.shape} is like no parameter"
    # The average of the parameters, and both moments of Adam or one momentum; Muon's own matrices have one.
    least = {"adamw": 3, "adam": 3, "adafactor": 1}.get(optimizer, 2)
    assert min(moments.values()) == least
