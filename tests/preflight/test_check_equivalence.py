"""`experiments.check equivalence`: sound configs pass on every mesh, and planted bugs are caught by name.

Each bug is planted so that one device, or a mesh without the axis in question, is as before.
"""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bigjax import config, sharding
from bigjax.config import Config, DataConfig, MeshConfig, ModelConfig, MoeConfig, OptimConfig, TrainConfig, strict
from bigjax.models import decoder
from bigjax.models.attention import backends as attention
from bigjax.models.moe import routing as moe_routing
from bigjax.models.parts import blocks
from bigjax.preflight.equivalence import bounds as error_bounds
from bigjax.preflight.equivalence import compare as equivalence
from bigjax.preflight.equivalence import meshes
from bigjax.preflight.equivalence.compare import Check, Reference, Report
from bigjax.sharding import Layout
from bigjax.tasks import losses, objectives
from bigjax.train import reduction, step
from experiments import config_source
from experiments.check import equivalence as check_equivalence
from tests.commands import ROOT

FEW = ("data=8", "fsdp=4,tensor=2,shard_sequence", "data=2,fsdp=2,tensor=2")
"""All ways of storing and computing: rows over data and fsdp, heads and vocabulary over tensor, split sequences."""

SEQUENCE = "data=2,fsdp=2,tensor=2,shard_sequence"


@cache
def tiny(**model) -> Reference:
    """Return what one device makes of one layer with rotary positions, packed documents and a chunked loss."""
    sizes = {"vocab_size": 32, "num_layers": 1, "d_model": 16, "num_heads": 2, "head_dim": 8, "d_ff": 32}
    cfg = Config(
        model=ModelConfig(**sizes, max_seq_len=16, positions="rotary", tie_embeddings=False, bias="none", **model),
        data=DataConfig(seq_len=16),
        train=TrainConfig(steps=10, global_batch_size=8, loss_chunks=2),
        optim=OptimConfig(name="adamw", lr=1e-2, schedule="constant"),
    )
    return equivalence.reference(cfg)


def on(mesh: str, **model) -> Check:
    """Return the check of the tiny config on one mesh."""
    return equivalence.compare(tiny(**model), meshes.parse(mesh))


def first(found: Check) -> str:
    """Return the first tensor that differs, after seeing that the command would end with exit status 4."""
    assert found.status == "differs", found
    assert Report("tiny", (found,), (tiny(),)).exit_code == 4
    one = found.differences[0]
    assert not one.error <= one.bound
    line = "\n".join(check_equivalence.lines(found))
    assert "DIFFERS" in line and found.mesh in line and one.tensor in line
    return f"{one.quantity} {one.tensor}"


def tensors(found: Check, quantity: str) -> list[str]:
    """Return all tensors of one kind that differ."""
    return [one.tensor for one in found.differences if one.quantity == quantity]


@pytest.mark.sample
@pytest.mark.parametrize(
    ("source", "on_meshes", "dtypes"),
    [
        ("configs/quickstart.py", FEW[1:2], ["float32"]),
        ("configs/llama.py:1b", FEW[2:], ["float32", "bfloat16"]),
        ("configs/gpt.py:d12", FEW[1:2], ["float32"]),
    ],
)
def test_sound_configs_pass(source, on_meshes, dtypes, monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = config.replace(strict.from_dict(Config, config_source.load(source)), model={"num_layers": 1})
    runs = {small.model.dtype: small for small in equivalence.small(cfg)}
    for dtype in dtypes:
        expected = equivalence.reference(runs[dtype])
        for mesh in on_meshes:
            found = equivalence.compare(expected, meshes.parse(mesh))
            assert found.status == "same", found
            # A bound that nothing comes near would find nothing; one that all come near would cry wolf.
            assert 1e-3 < found.largest_ratio < 0.5, found


@pytest.mark.exhaustive
def test_a_sum_within_rounding_of_the_kink_of_relu_is_no_finding(call_check, monkeypatch):
    monkeypatch.chdir(ROOT)
    # With ReLU, a sum in this config's last layer falls on one side of 0 on one device and on the other on eight.
    status, said, _ = call_check("equivalence", "--config=configs/copy_task.py", "--meshes=fsdp=8")
    assert status == 0 and "SAME as one device: 1 same" in said, said


@pytest.mark.sample
@pytest.mark.parametrize("mesh", [*FEW, SEQUENCE])
def test_the_tiny_config_passes(mesh):
    assert on(mesh).status == "same"


def test_the_tiny_config_with_dropout_passes():
    assert on(FEW[2], dropout=0.25).status == "same"


def test_microbatches_make_the_step_of_the_whole_batch():
    found = equivalence.in_microbatches(tiny())
    assert found is not None and (found.status, found.mesh) == ("same", "data=1, 2 microbatches"), found


def test_a_gradient_that_a_loop_over_microbatches_sums_wrongly(monkeypatch):
    tiny()  # before the bug, of which a whole batch knows nothing
    zeros = reduction.zeros

    def begun_with_ones(params):
        grads = zeros(params)
        return {**grads, "embed": {"tokens": grads["embed"]["tokens"] + 1}}

    monkeypatch.setattr(reduction, "zeros", begun_with_ones)
    found = equivalence.in_microbatches(tiny())
    assert found is not None and first(found) == "gradient embed/tokens"


def test_a_gradient_doubled_on_one_axis(monkeypatch):
    gather = Layout.gather

    @jax.custom_vjp
    def doubled(w):
        return w

    doubled.defvjp(lambda w: (w, None), lambda _, g: (g + g,))  # JAX multiplies no summands of a sum to come

    def broken(self, params, specs, dtype):
        used = gather(self, params, specs, dtype)
        if self.sizes["fsdp"] > 1 and isinstance(used, dict) and "mlp" in used:
            used["mlp"]["up"] = doubled(used["mlp"]["up"])
        return used

    monkeypatch.setattr(Layout, "gather", broken)
    found = on(FEW[2])
    assert first(found) == "gradient blocks/mlp/up"
    # The scale shows through Adam too; the optimizer itself did what it should with what it was given.
    assert tensors(found, "gradient") == tensors(found, "Adam step on") == ["blocks/mlp/up"]
    assert tensors(found, "updated parameter") == []
    assert on(FEW[0]).status == "same"


def test_a_loss_averaged_per_shard_instead_of_per_token(monkeypatch):
    sound = objectives.causal_lm

    def broken(model, params, batch, cfg, *, layout, key=None):
        # Each block of rows counts alike, however many weighted tokens it has.
        ways = layout.sizes["data"]
        weights = batch["weights"].reshape(ways, -1, batch["weights"].shape[1]) if ways > 1 else None
        if weights is not None:
            share = weights.sum(axis=(1, 2), keepdims=True)
            weights = weights / share * (weights.sum() / ways)
            batch = {**batch, "weights": jnp.reshape(weights, batch["weights"].shape)}
        return sound(model, params, batch, cfg, layout=layout, key=key)

    monkeypatch.setattr(objectives, "causal_lm", broken)
    found = on("data=8")
    # The count of tokens is that of all shards together, up to rounding; which is found first hangs on that.
    assert first(found) in ("mean loss", "number of tokens")
    assert tensors(found, "mean") == ["loss", "nll"]


def test_a_batch_of_which_every_shard_sees_the_first_rows(monkeypatch):
    sound = sharding.put_batch

    def broken(arrays, mesh, global_batch_size):
        ways = mesh.shape["data"]
        rows = np.arange(global_batch_size) % (global_batch_size // ways)
        return sound({name: x[rows] for name, x in arrays.items()}, mesh, global_batch_size)

    monkeypatch.setattr(sharding, "put_batch", broken)
    found = on(FEW[2])
    assert first(found) == "batch tokens"
    assert "weights" in tensors(found, "batch") and "loss" in tensors(found, "mean")


def test_dropout_keys_equal_on_all_shards(monkeypatch):
    sound = step.row_numbers

    def broken(tokens_BS):
        spec, rows_B = jax.typeof(tokens_BS).sharding.spec, sound(tokens_BS)
        ways = np.prod([jax.sharding.get_abstract_mesh().shape[a] for a in np.atleast_1d(spec[0] or [])], dtype=int)
        return rows_B % (len(rows_B) // ways)

    monkeypatch.setattr(step, "row_numbers", broken)
    assert first(on(FEW[2], dropout=0.25)) == "mean loss"


def test_a_kernel_that_ignores_documents_when_heads_are_split(monkeypatch):
    def broken(q, k, v, mask, *, layout, **options):
        if layout.over("heads"):
            mask = attention.Mask(None, mask.window)
        return attention.reference(q, k, v, mask, layout=layout, **options)

    monkeypatch.setitem(attention.BACKENDS, "reference", attention.Backend(broken))
    assert first(on(FEW[2])) == "mean loss"
    assert on("data=4,fsdp=2").status == "same"


def test_positions_that_restart_on_every_part_of_the_sequence(monkeypatch):
    sound = decoder.apply

    def broken(params, tokens, cfg, *, layout, positions_BS=None, **others):
        if layout.over("residual_seq"):
            positions_BS = positions_BS % (tokens.shape[1] // layout.sizes["tensor"])
        return sound(params, tokens, cfg, layout=layout, positions_BS=positions_BS, **others)

    monkeypatch.setattr(decoder, "apply", broken)
    assert first(on(SEQUENCE)) == "mean loss"
    assert on(FEW[2]).status == "same"


def test_a_shard_transposed_in_use(monkeypatch):
    gather = Layout.gather

    def broken(self, params, specs, dtype):
        used = gather(self, params, specs, dtype)
        if self.over("heads") and isinstance(used, dict) and "attn" in used:
            # (D, H, K): each device's part read in Fortran's order.
            turn = jax.shard_map(
                lambda w: w.T.reshape(w.shape), in_specs=P(None, "tensor"), out_specs=P(None, "tensor")
            )
            used["attn"]["v"] = turn(jax.reshard(used["attn"]["v"], P(None, "tensor", None)))
        return used

    monkeypatch.setattr(Layout, "gather", broken)
    found = on(FEW[2])
    assert first(found) == "mean loss" and "blocks/attn/v" in tensors(found, "gradient")


def test_a_shard_transposed_at_the_start(monkeypatch):
    sound = step.init_state

    def broken(cfg, model, tx, layout):
        state = sound(cfg, model, tx, layout)
        if layout.sizes["fsdp"] > 1:
            head = state.params["head"]["tokens"]
            state.params["head"]["tokens"] = jax.reshard(jnp.flip(jax.reshard(head, P()), 0), jax.typeof(head).sharding)
        return state

    monkeypatch.setattr(step, "init_state", broken)
    found = on("fsdp=8")
    assert first(found) == "initial parameter head/tokens" and len(found.differences) == 1


def test_a_missing_sum_over_the_batch(monkeypatch):
    sound = losses._local
    monkeypatch.setattr(losses, "_local", lambda *a, batch, **k: sound(*a, batch=(), **k))
    found = on("data=8")
    assert first(found) == "number of tokens"
    assert tensors(found, "gradient")


def test_a_missing_sum_over_the_vocabulary(monkeypatch):
    psum = jax.lax.psum
    monkeypatch.setattr(jax.lax, "psum", lambda x, axes: x if axes == ("tensor",) else psum(x, axes))
    assert first(on(FEW[2])) == "mean loss"


MOE = MoeConfig(num_experts=4, router="gshard", capacity_factor=1.0, jitter=0.1)


@pytest.mark.sample
@pytest.mark.parametrize("mesh", ["data=2,expert=4", "fsdp=2,expert=2,tensor=2,shard_sequence"])
def test_a_tiny_mixture_of_experts_passes(mesh):
    assert on(mesh, moe=MOE).status == "same"


@pytest.mark.exhaustive
def test_a_drop_that_depends_on_how_many_devices_share_the_experts(monkeypatch):
    sound = moe_routing.capacity

    def broken(cfg, group_size):
        # An expert's places shared out over the devices that send to it.
        return -(-sound(cfg, group_size) // jax.sharding.get_abstract_mesh().shape["expert"])

    monkeypatch.setattr(moe_routing, "capacity", broken)
    assert first(on("expert=4", moe=MOE)) == "mean loss"
    assert on(FEW[2], moe=MOE).status == "same"


def test_a_step_that_cannot_be_traced_is_named(monkeypatch):
    sound = blocks.final_norm

    def broken(params, x, cfg):
        if jax.typeof(x).sharding.spec[1] is not None:
            raise TypeError("contracting a split axis is ambiguous\nmore")
        return sound(params, x, cfg)

    monkeypatch.setattr(blocks, "final_norm", broken)
    found = on(SEQUENCE)
    assert (found.status, found.reason) == ("fails", "fails to trace: TypeError: contracting a split axis is ambiguous")
    assert Report("tiny", (found,), (tiny(),)).exit_code == 4


def test_meshes_that_do_not_fit_say_why():
    found = on("tensor=8")
    assert (
        found.status == "does not fit" and "axis kv_heads of size 2 is not divisible by mesh.tensor=8" in found.reason
    )


def test_all_factorisations():
    names = [meshes.mesh_name(mesh) for mesh in meshes.factorisations(8)]
    # 8 = 2^3 over three axes: C(5, 2) = 10, of which 6 have a tensor axis.
    assert len(set(names)) == len(names) == 16
    assert [meshes.mesh_name(meshes.parse(name)) for name in names] == names
    # Over four axes: C(6, 3) = 20, of which 10 have a tensor axis.
    assert len(set(meshes.factorisations(8, sparse=True))) == 30
    assert meshes.parse("fsdp=4, tensor=2") == MeshConfig(data=1, fsdp=4, tensor=2)
    staged = [meshes.mesh_name(mesh) for mesh in meshes.pipelines(8)]
    assert staged == [
        "stage=2,fsdp=4",
        "stage=2,data=2,tensor=2,pipeline_repeats=2,shard_sequence",
        "stage=4,fsdp=2",
        "stage=4,tensor=2,pipeline_repeats=2,shard_sequence",
        "stage=8",
    ]
    assert [meshes.mesh_name(meshes.parse(name)) for name in staged] == staged
    assert {mesh.expert for mesh in meshes.pipelines(8, sparse=True)} == {1, 2}


def test_a_wrong_copy_counts_though_the_first_is_right():
    right, wrong = np.ones(3, np.float32), np.array([1, 1, 4], np.float32)
    everywhere = (slice(None),)
    assert equivalence.distance([(everywhere, right), (everywhere, wrong)], right) == 3
    assert equivalence.distance([(everywhere, right * np.nan)], right) == np.inf


def test_the_bound_of_a_sum_holds_and_is_not_loose():
    # Sums of 4,096 numbers in float32 in two orders, against the theorem; errors of a random walk are sqrt(n) u.
    rng = np.random.default_rng(0)
    x = rng.random((200, 4096), dtype=np.float32)
    forward, backward = np.cumsum(x, axis=1)[:, -1], np.cumsum(x[:, ::-1], axis=1)[:, -1]
    error = np.abs(forward - backward).max() / x.sum(axis=1).max()
    bound = 2 * error_bounds.gamma(4096, error_bounds.UNIT_ROUNDOFF["float32"])
    assert bound / 100 < error < bound
    assert bound < 2 * 4096 * 2.0**-24  # the worst case


def test_the_command_names_what_differs_and_ends_with_4(call_check, tmp_path, monkeypatch):
    sound = tiny()
    monkeypatch.setattr(equivalence, "reference", lambda cfg: sound)
    out = tmp_path / "new" / "eq.json"
    asked = ("equivalence", "--config=configs/quickstart.py", f"--out={out}")
    status, said, _ = call_check(*asked, "--meshes=tensor=2")
    assert status == 0 and "SAME as one device: 1 same" in said and json.loads(out.read_text())["passed"]
    local = losses._local
    monkeypatch.setattr(losses, "_local", lambda *a, batch, **k: local(*a, batch=(), **k))
    status, said, _ = call_check(*asked, "--meshes=fsdp=8")
    assert status == 4 and "NOT THE SAME as one device: 1 differs" in said
    assert "first on fsdp=8 in float32: number of tokens" in said
    found = json.loads(out.read_text())
    assert not found["passed"] and [one["status"] for one in found["checks"]] == ["differs"]
    assert found["checks"][0]["differences"][0]["tensor"] == "tokens"
