"""`check equivalence` on meshes that split rows: the sound program passes, and what others got wrong is found by name.

Each fault is planted so that one device, and a mesh that leaves rows whole, is as before.
"""

from functools import cache

import jax
import jax.numpy as jnp
import pytest

from bigjax.config import Config, DataConfig, ModelConfig, MoeConfig, OptimConfig, TrainConfig
from bigjax.models.attention import context, ring
from bigjax.preflight.equivalence import compare as equivalence
from bigjax.preflight.equivalence import meshes
from bigjax.preflight.equivalence.compare import Check, Reference
from experiments.check import equivalence as check_equivalence

RING, GATHER, ALL_TO_ALL = (f"context=4,{exchange}" for exchange in ("ring", "gather", "all_to_all"))
WHOLE = "fsdp=2,tensor=2"


@cache
def tiny(sparse: str = "") -> Reference:
    """Return what one device makes of rotary positions, packed documents, a window, fewer kv heads, a chunked loss."""
    sizes = {"vocab_size": 32, "num_layers": 1, "d_model": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    experts = {"num_experts": 4, "top_k": 2, "aux_loss": 0.01, "z_loss": 1e-3, "d_ff": 16}
    moe = MoeConfig(**experts, capacity_factor=None) if sparse == "dropless" else MoeConfig()
    moe = MoeConfig(**experts, capacity_factor=1.0, group_size=4) if sparse == "capacity" else moe
    model = ModelConfig(**sizes, d_ff=32, max_seq_len=32, positions="rotary", bias="none", sliding_window=20, moe=moe)
    train = TrainConfig(steps=10, global_batch_size=4, loss_chunks=2)
    optim = OptimConfig(name="adamw", lr=1e-2, schedule="constant")
    return equivalence.reference(Config(model=model, data=DataConfig(seq_len=32), train=train, optim=optim))


def on(mesh: str, sparse: str = "") -> Check:
    return equivalence.compare(tiny(sparse), meshes.parse(mesh))


def first(found: Check) -> str:
    """Return the first tensor that differs, as the command says it."""
    assert found.status == "differs", found
    line = check_equivalence.lines(found)[0]
    assert "DIFFERS first in" in line and found.mesh in line
    return found.differences[0].what


def gradients(found: Check) -> set[str]:
    return {one.tensor for one in found.differences if one.quantity == "gradient"}


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("mesh", "sparse"),
    [
        (RING, ""),
        ("context=2,expert=2,tensor=2,gather,shard_sequence", "capacity"),
        ("context=8,gather", ""),
        ("context=8,ring", ""),
        ("context=4,tensor=2,ring,shard_sequence", "dropless"),
        ("context=4,expert=2,all_to_all", "dropless"),
        ("data=2,fsdp=2,context=2,all_to_all", ""),
        ("fsdp=2,context=2,tensor=2,ring", ""),
        ("fsdp=2,context=4,ring", "capacity"),
        (GATHER, "dropless"),
        (ALL_TO_ALL, "capacity"),
    ],
)
def test_split_rows_compute_what_whole_rows_do(mesh, sparse):
    found = on(mesh, sparse)
    assert found.status == "same", found
    assert 1e-3 < found.largest_ratio < 0.5, found


@pytest.mark.faults
@pytest.mark.parametrize("mesh", [GATHER, ALL_TO_ALL])
def test_documents_that_are_ignored_across_devices(mesh, monkeypatch):
    gathered = context._gathered

    def broken(x):
        return jnp.ones_like(gathered(x)) if x is not None and x.ndim == 2 else gathered(x)

    monkeypatch.setattr(context, "_gathered", broken)
    assert first(on(mesh)) == "mean loss"


@pytest.mark.faults
def test_documents_that_are_ignored_in_a_ring(monkeypatch):
    visible = ring.visible
    monkeypatch.setattr(
        ring, "visible", lambda query, key, own, others, window: visible(query, key, None, None, window)
    )
    assert first(on(RING)) == "mean loss"


@pytest.mark.faults
def test_labels_that_are_shifted_on_each_device(monkeypatch):
    arranged = context.arranged

    def broken(batch, cfg, layout):
        moved, balanced = arranged(batch, cfg, layout)
        B, S = batch["tokens"].shape
        parts = jnp.reshape(batch["tokens"], (B, layout.sizes["context"], -1))
        own = {**batch, "targets": jnp.roll(parts, -1, axis=2).reshape(B, S)}  # right but at the edges
        return {**moved, "targets": arranged(own, cfg, layout)[0]["targets"]}, balanced

    monkeypatch.setattr(context, "arranged", broken)
    assert first(on(ALL_TO_ALL)) == "mean loss"
    assert on(WHOLE).status == "same"


@pytest.mark.faults
def test_gradients_of_keys_and_values_that_stay_where_they_are(monkeypatch):
    onward = ring._onward
    stays = lambda tree, options: onward(tree, options) if isinstance(tree, ring.Travelling) else tree  # noqa: E731
    monkeypatch.setattr(ring, "_onward", stays)
    found = on(RING)
    # The losses agree; queries get their gradients, and what comes before attention does not.
    assert first(found).startswith("gradient") and {"blocks/attn/k", "blocks/attn/v"} <= gradients(found)
    assert not {"blocks/attn/q", "blocks/mlp/up"} & gradients(found)


@pytest.mark.faults
def test_gradients_that_do_not_come_back_from_others(monkeypatch):
    gathered = context._gathered

    @jax.custom_vjp
    def one_way(x):
        return gathered(x)

    def back(_, dy):
        size = dy.shape[1] // jax.lax.axis_size(context.AXIS)
        return (jax.lax.dynamic_slice_in_dim(dy, jax.lax.axis_index(context.AXIS) * size, size, axis=1),)

    one_way.defvjp(lambda x: (gathered(x), None), back)
    monkeypatch.setattr(context, "_gathered", lambda x: one_way(x) if x is not None and x.ndim == 4 else gathered(x))
    found = on(GATHER)
    assert first(found).startswith("gradient") and {"blocks/attn/k", "blocks/attn/v"} <= gradients(found)


@pytest.mark.faults
def test_a_ring_in_which_nothing_rotates(monkeypatch):
    monkeypatch.setattr(ring, "_onward", lambda tree, options: tree)
    assert first(on(RING)) == "mean loss"
    assert on(WHOLE).status == "same"


def test_every_way_is_tried_by_discovery():
    found = list(meshes.factorisations(8, rows=True))
    names = [meshes.mesh_name(mesh) for mesh in found]
    assert len(set(names)) == len(names) and [meshes.mesh_name(meshes.parse(name)) for name in names] == names
    # 16 leave rows whole. 8 = 2^3 over four axes with context: C(5, 3) = 10, of which 4 have a tensor axis, too; the
    # one that is context alone is tried in three ways.
    split = [mesh for mesh in found if mesh.context > 1]
    assert len(found) == 16 + len(split) and len(split) == 10 + 4 + 2
    assert {mesh.context_exchange for mesh in split} == {*meshes.EXCHANGES}
    assert {mesh.context_exchange for mesh in split if mesh.tensor > 1} == {*meshes.EXCHANGES}
    assert {mesh.context for mesh in split} == {2, 4, 8}
