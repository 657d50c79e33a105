"""Products in low precision before a launch: every mesh computes the same, faults are found, plans know their peaks."""

import dataclasses
from functools import cache, partial
from math import expm1, log, pi, sqrt

import jax
import jax.numpy as jnp
import pytest

from bigjax.config import (
    MESH_AXES,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoeConfig,
    OptimConfig,
    TrainConfig,
    mup,
    replace,
)
from bigjax.models.parts import products
from bigjax.preflight.equivalence import bounds as error_bounds
from bigjax.preflight.equivalence import compare as equivalence
from bigjax.preflight.equivalence import meshes
from bigjax.preflight.plan import program, report
from bigjax.preflight.plan.analytic import estimate as analytic
from bigjax.preflight.plan.planner import Planner
from bigjax.preflight.resume import trial
from bigjax.run.chips import PlanError, parse_topology
from bigjax.sharding import abstract_mesh

SIZES = {"vocab_size": 32, "num_layers": 2, "d_model": 16, "num_heads": 2, "head_dim": 8, "d_ff": 32, "max_seq_len": 16}
SPLIT = "fsdp=4,tensor=2,shard_sequence"
SPARSE = {"moe": MoeConfig(num_experts=4), "activation": "swiglu"}
FULL = {"moe": MoeConfig(num_experts=4, capacity_factor=2.0)}
MUP = {"parametrization": "mup", "mup": mup.MupConfig(base_d_model=8)}


def tiny(recipe: str, **model) -> Config:
    return Config(
        model=ModelConfig(**SIZES, positions="rotary", tie_embeddings=False, bias="none", matmul=recipe, **model),
        data=DataConfig(seq_len=16),
        train=TrainConfig(steps=10, global_batch_size=8, microbatches=1, loss_chunks=2),
        optim=OptimConfig(name="adamw", lr=1e-2, schedule="constant"),
    )


@cache
def scaled(**model) -> equivalence.Reference:
    return equivalence.reference(tiny("scaled", **model))


def same(expected: equivalence.Reference, mesh: str) -> None:
    found = equivalence.compare(expected, meshes.parse(mesh))
    assert found.status == "same", found


@pytest.mark.sample
@pytest.mark.parametrize("mesh", [SPLIT, "data=8", "context=4,data=2", "stage=2,data=2,tensor=2,shard_sequence"])
def test_scales_are_right_on_every_mesh(mesh):
    """Nothing is rounded, so the bound is that of float32."""
    same(scaled(), mesh)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("fields", "mesh"),
    [
        ({**SPARSE, "remat": "dots"}, "fsdp=2,expert=2,tensor=2"),
        (SPARSE, "context=2,expert=2,data=2"),
        (FULL, "fsdp=2,expert=2,tensor=2,shard_sequence"),
        (FULL, "stage=2,expert=2,tensor=2"),
        ({"num_layers": 4, "matmul_spared_blocks": 1, "remat": "full"}, SPLIT),
        (MUP, SPLIT),
    ],
)
def test_scales_are_right_in_every_model(fields, mesh):
    cfg = replace(tiny("scaled"), model=fields)
    expected = equivalence.reference(cfg)
    same(expected, mesh)
    found = equivalence.in_microbatches(expected)
    assert found is not None and found.status == "same", found


@pytest.mark.exhaustive
@pytest.mark.parametrize(("recipe", "dtype"), [("int8", "float32"), ("int8", "bfloat16"), ("fp8", "bfloat16")])
def test_recipes_are_the_same_within_their_bounds(recipe, dtype):
    expected = equivalence.reference(tiny(recipe, dtype=dtype))
    same(expected, SPLIT)
    found = equivalence.in_microbatches(expected)
    assert found is not None and found.status == "same", found


@pytest.mark.exhaustive
@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_spared_blocks_are_those_at_the_ends(layers, monkeypatch):
    seen = []
    matrix = products.matrix
    monkeypatch.setattr(products, "matrix", lambda *given: (seen.append(given[3].matmul), matrix(*given))[1])
    cfg = replace(tiny("int8"), model={"num_layers": 5, "matmul_spared_blocks": 1, "layers": layers})
    program.build(cfg, abstract_mesh(dict.fromkeys(MESH_AXES, 1))).trace()
    blocks = [name for name, before in zip(seen, [None, *seen], strict=False) if name != before]
    assert blocks[:3] == ["default", "int8", "default"]


def scaled_twice(aligned):
    """Return scales that are wrong where devices split what is summed, by the square root of 2 on either side."""

    def broken(scale, axes, of_y, natural):
        found = aligned(scale, axes, of_y, natural)
        return found * 2**0.5 if natural is not None and "tensor" in natural.unreduced else found

    return broken


def test_scales_that_are_wrong_on_one_mesh_are_found(monkeypatch):
    expected = scaled()  # before the bug
    monkeypatch.setattr(products, "_aligned", scaled_twice(products._aligned))
    found = equivalence.compare(expected, meshes.parse(SPLIT))
    assert found.status == "differs"
    assert (found.differences[0].quantity, found.differences[0].tensor) == ("mean", "loss")


@pytest.mark.exhaustive
def test_a_gradient_that_one_device_alone_scales_is_found(monkeypatch):
    expected = scaled()
    quantised = products._quantised

    def broken(x, contracted, to, summed):
        found = quantised(x, contracted, to, summed)
        if contracted != (0, 1) or len(x) != 8:  # 8 rows, summed over their tokens: the gradient of a matrix
            return found
        wrong = jnp.where(jnp.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)) == 0, 2.0, 1.0)
        return found._replace(values=found.values * jax.reshard(wrong, jax.P(jax.typeof(x).sharding.spec[0])))

    monkeypatch.setattr(products, "_quantised", broken)
    found = equivalence.compare(expected, meshes.parse("data=8"))
    assert found.status == "differs", found.reason
    assert found.differences[0].quantity == "gradient"


def test_what_is_exact_comes_first():
    cfg = tiny("fp8", dtype="bfloat16")
    for small in (equivalence.small(cfg), trial.small(cfg, 10, 6, MeshConfig(data=1))):
        assert [error_bounds.precision(one) for one in small] == ["float32, scaled products", "bfloat16, fp8 products"]
    plain = equivalence.small(tiny("default", dtype="bfloat16"))
    assert [error_bounds.precision(one) for one in plain] == ["float32", "bfloat16"]
    spared = replace(cfg, model={"num_layers": 9, "matmul_spared_blocks": 2})
    assert equivalence.small(spared)[1].model.matmul_spared_blocks == 1


def test_bounds_are_those_of_the_formats():
    of = partial(error_bounds.bounds, num_parameters=1000, num_devices=8, repeats=8)
    plain, eight, fp8 = (of(tiny(recipe)) for recipe in ("default", "int8", "fp8"))
    assert of(tiny("scaled")) == plain
    # 2 layers of 4 operands forwards and 4 backwards; half a step of 2^-8 of the largest of 32 numbers.
    u = 2**-8 * sqrt(pi * log(32))
    added = expm1((error_bounds.LAMBDA * 4 * u + 16 * u * u) / (1 - u))
    assert eight.quantised == 16 and eight.relative == pytest.approx(plain.relative + 2 * added, rel=1e-9)
    assert fp8.relative > eight.relative and fp8.quantised == 18


def planned(topology: str, **changes) -> dict:
    return Planner(parse_topology(topology), "test", analytic=True).plan(replace(config_of_size(), **changes))


@cache
def config_of_size() -> Config:
    model = ModelConfig(num_layers=4, d_model=1024, num_heads=8, dtype="bfloat16", attention="reference", remat="none")
    train = TrainConfig(global_batch_size=64, microbatches=1, loss_chunks=1)
    return Config(model=model, data=DataConfig(seq_len=1024), train=train)


def test_plans_take_the_peak_of_the_format():
    plain, eight = planned("v6e:4x4"), planned("v6e:4x4", model={"matmul": "int8"})
    assert plain["low_precision_flops_per_step"] == 0
    # Two of three products with the 12 D^2 of each of 4 layers (Kaplan et al. 2020, table 1), 2 FLOPs a token each.
    low = 2 * 2 * 4 * 12 * 1024**2 * 64 * 1024
    assert eight["low_precision_flops_per_step"] == low
    saved = low / 16 * (1 / 918e12 - 1 / 1836e12)
    assert plain["seconds"]["compute"] - eight["seconds"]["compute"] == pytest.approx(saved, rel=1e-6)
    assert planned("v6e:4x4", model={"matmul": "scaled"})["seconds"] == plain["seconds"]
    with pytest.raises(PlanError, match="v5e has no published peak for float8"):
        planned("v5e:4x4", model={"matmul": "fp8"})


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_plans_count_moments_in_bfloat16(name):
    cfg = replace(config_of_size(), optim={"name": name, "moments_dtype": "bfloat16"})
    mesh = abstract_mesh(dict.fromkeys(MESH_AXES, 1) | {"fsdp": 16})
    state = program.build(dataclasses.replace(cfg, mesh=MeshConfig(data=1, fsdp=16)), mesh).state
    exact = report.state_bytes(state.opt_state)
    found = analytic.estimate(dataclasses.replace(cfg, mesh=MeshConfig(data=1, fsdp=16)), dict(mesh.shape))
    assert found.optimizer_bytes == pytest.approx(exact, rel=2e-3)  # counters are left out
