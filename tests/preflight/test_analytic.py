"""The analytic model of a step: exact state, closed forms of traffic, and the committed comparison with a compiler."""

import json
from math import prod
from typing import Any

import jax
import pytest

from benchmarks import analytic_memory as benchmark
from bigjax import models, params, sharding
from bigjax.config import (
    MESH_AXES,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    MoeConfig,
    OptimConfig,
    TrainConfig,
    replace,
)
from bigjax.models.attention.blocked import _Options
from bigjax.preflight.plan import candidates, devices
from bigjax.preflight.plan.analytic import memory as analytic_memory
from bigjax.preflight.plan.analytic.estimate import estimate
from bigjax.preflight.plan.analytic.share import share
from bigjax.sharding import ShardingError
from bigjax.train import optimizers as optim
from bigjax.train import step
from bigjax.train.flops import model_flops_per_token
from experiments import cli, config_source

MESHES = [
    {},
    {"data": 8},
    {"fsdp": 8},
    {"data": 2, "tensor": 4},
    {"slice": 2, "data": 1, "fsdp": 2, "tensor": 2},
]
TABLE = json.loads(benchmark.TABLE.read_text())


def small(
    mesh: dict[str, Any] | None = None, train: dict[str, Any] | None = None, optim: Any = None, **model
) -> Config:
    sizes: dict[str, Any] = {"vocab_size": 1024, "num_layers": 3, "d_model": 256, "num_heads": 8, "max_seq_len": 256}
    return Config(
        model=ModelConfig(**{**sizes, **model}),
        data=DataConfig(seq_len=256),
        train=TrainConfig(**{"global_batch_size": 32, **(train or {})}),
        optim=optim or OptimConfig(),
        mesh=MeshConfig(**{"data": 1, **(mesh or {})}),
    )


def sizes_of(cfg: Config) -> dict[str, int]:
    return {axis: cfg.mesh.sizes[axis] for axis in MESH_AXES}


def found(cfg: Config):
    return estimate(cfg, sizes_of(cfg))


def sent(cfg: Config) -> dict[tuple[str, tuple[str, ...]], int]:
    return {(c.kind, c.mesh_axes): c.bytes_per_chip for c in found(cfg).collectives}


def real_bytes(tree: Any) -> int:
    """Bytes of one device's part of every array; counters have no axis, or are integers."""
    arrays = [x for x in jax.tree.leaves(tree) if x.ndim and x.dtype == "float32"]
    return sum(prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


FAMILIES: dict[str, Any] = {
    "experts": {"moe": MoeConfig(num_experts=4, capacity_factor=1.0)},
    "encoder": {"family": "encoder", "token_types": 2, "norm_placement": "post"},
    "encdec": {"family": "encdec", "positions": "relative", "encdec": {"num_decoder_layers": 2}},
    "rnn": {"family": "rnn", "num_heads": 4, "max_seq_len": 1024, "tie_embeddings": False},  # the defaults of both
}


def of_family(name: str, mesh: dict[str, Any] | None = None, **model) -> Config:
    """A small model of a family; an encoder-decoder writes 64 tokens for 256 that it reads."""
    objective = {"encoder": "masked_lm", "encdec": "span_corruption"}.get(name, "causal_lm")
    sizes: dict[str, Any] = {"vocab_size": 1024, "num_layers": 2, "d_model": 256, "num_heads": 8, "max_seq_len": 256}
    return Config(
        model=ModelConfig(**{**sizes, **FAMILIES[name], **model}),
        data=DataConfig(seq_len=256, target_len=64 if name == "encdec" else 0),
        train=TrainConfig(global_batch_size=32, objective=objective),
        mesh=MeshConfig(**{"data": 1, **(mesh or {})}),
    )


@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"data": 2, "tensor": 4}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_state_of_every_family_is_what_the_arrays_take(axes, family):
    check_state(of_family(family, axes))


@pytest.mark.parametrize("axes", MESHES, ids=str)
@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "adafactor", "muon"])
def test_state_is_what_the_arrays_take(axes, name):
    check_state(small(axes, optim=OptimConfig(name=name, ema_decay=0.9 if name == "lion" else None)))


def check_state(cfg: Config) -> None:
    sizes = sizes_of(cfg)
    mesh = sharding.abstract_mesh(sizes)
    model = models.build(cfg.model)
    layout = sharding.layout(cfg.mesh, mesh, model.specs)
    state = step.abstract_state(cfg, model, optim.build(cfg.optim, model.specs, 10), layout, mesh)
    assert found(cfg).params_bytes == real_bytes(state.params)
    assert found(cfg).optimizer_bytes == real_bytes((state.opt_state, state.ema))


def test_experts_exchange_their_buffers_and_keep_their_gradients():
    cfg = of_family("experts", {"expert": 4}, tie_embeddings=False)
    # 8 rows a device; 256 tokens fill 4 experts of 64 places each. Two layers send them, and back, in both directions.
    places = 8 * 256
    traffic = sent(cfg)
    assert traffic["all-to-all", ("expert",)] == pytest.approx(2 * 4 * places * 256 * 4 * 3 / 4)
    specs = models.build(cfg.model).specs
    own = params.count({name: specs["blocks"]["moe"][name] for name in ("up", "down")})
    assert traffic["all-reduce", ("expert",)] == pytest.approx(2 * 4 * (params.count(specs) - own) * 3 / 4, abs=1)


@pytest.mark.parametrize(("repeats", "ticks"), [(1, 8 + 3), (2, 2 * 8 + 3)])
def test_stages_compute_in_their_bubble_and_send_in_every_tick(repeats, ticks):
    # 4 stages, 2 microbatches of 4 rows from each: v m + p - 1 ticks (Huang et al. 2019; Narayanan et al. 2021).
    whole, cfg = (
        small(axes, num_layers=8, tie_embeddings=False)
        for axes in ({"data": 4}, {"stage": 4, "pipeline_microbatches": 8, "pipeline_repeats": repeats})
    )
    head = 3 * 2 * cfg.model.vocab_size * cfg.model.d_model * 8 * cfg.data.seq_len
    layers = found(whole).compiled_flops - head
    assert found(cfg).compiled_flops - head == pytest.approx(layers * ticks / (repeats * 8))
    residual = 4 * 4 * cfg.data.seq_len * cfg.model.d_model
    specs = models.build(cfg.model).specs["blocks"]
    in_turn = 2 * 4 * params.count(specs) / 4 if repeats > 1 else 0
    assert sent(cfg)["collective-permute", ("stage",)] == pytest.approx(4 * ticks * residual + in_turn)


def test_recurrent_layers_sum_each_gradient_once():
    cfg = of_family("rnn", {"data": 8})
    parameters = params.count(models.build(cfg.model).specs)
    assert sent(cfg) == {("all-reduce", ("data",)): pytest.approx(2 * 4 * parameters * 7 / 8, abs=1)}


@pytest.mark.parametrize("family", ["encdec", "rnn"])
def test_flops_of_a_family_are_those_of_the_model_where_nothing_is_recomputed(family):
    for mesh in ({}, {"data": 2, "tensor": 4}):
        estimated = found(of_family(family, mesh))
        assert estimated.compiled_flops == pytest.approx(estimated.model_flops)


def test_data_parallelism_sends_every_gradient_twice_round_the_ring():
    cfg = small({"data": 8}, tie_embeddings=False)
    parameters = params.count(models.build(cfg.model).specs)
    assert sent(cfg) == {("all-reduce", ("data",)): pytest.approx(2 * 4 * parameters * 7 / 8, abs=1)}


@pytest.mark.parametrize(("remat", "block_gathers"), [("none", 1), ("full", 2)])
def test_fsdp_gathers_for_each_pass_and_scatters_gradients(remat, block_gathers):
    cfg = small({"fsdp": 8}, tie_embeddings=False, bias="none", remat=remat)
    specs = models.build(cfg.model).specs
    matrices, blocks = params.count(specs, without=("norm",)), params.count(specs["blocks"], without=("norm",))
    traffic = sent(cfg)
    assert traffic["reduce-scatter", ("fsdp",)] == pytest.approx(4 * matrices * 7 / 8, abs=1)
    gathered = matrices - blocks + block_gathers * blocks
    assert traffic["all-gather", ("fsdp",)] == pytest.approx(4 * gathered * 7 / 8, abs=1)
    norms = params.count(specs) - matrices
    assert traffic["all-reduce", ("fsdp",)] == pytest.approx(2 * 4 * norms * 7 / 8, abs=1)


def test_microbatches_reduce_and_gather_as_often():
    once, four = (sent(small({"fsdp": 8}, {"microbatches": n})) for n in (1, 4))
    assert four == {key: pytest.approx(4 * value, abs=4) for key, value in once.items()}


def test_tensor_parallelism_sums_four_activations_a_layer():
    cfg = small({"tensor": 4}, vocab_size=1023, tie_embeddings=False)  # an odd vocabulary stays whole
    stream = 4 * 32 * 256 * 256
    assert sent(cfg) == {("all-reduce", ("tensor",)): 3 * 4 * stream * 2 * 3 // 4}
    recomputed = replace(cfg, model={"remat": "full"})
    assert sent(recomputed) == {("all-reduce", ("tensor",)): 3 * 5 * stream * 2 * 3 // 4}
    # Split sequences send the same bytes in two halves; with remat the gathers are repeated too.
    split = sent(replace(cfg, mesh={"shard_sequence": True}))
    assert split["reduce-scatter", ("tensor",)] == 3 * 4 * stream * 3 // 4
    assert split["all-gather", ("tensor",)] == (3 * 4 + 1) * stream * 3 // 4  # and the last hidden states


def test_slices_exchange_what_their_devices_hold_apart():
    traffic = sent(small({"slice": 2, "data": 4}, tie_embeddings=False))
    assert traffic["all-reduce", ("data",)] == 6 * traffic["all-reduce", ("slice",)]  # 2 * 3/4 of P to 2 * 1/2 of P/4


def test_remat_trades_memory_for_flops():
    policies = ["full", "save:attn_out", "dots", "none"]
    totals = [found(small(remat=remat)) for remat in policies]
    assert [e.activation_bytes for e in totals] == sorted(e.activation_bytes for e in totals)
    assert totals[0].total_bytes < totals[2].total_bytes < totals[3].total_bytes
    assert totals[0].compiled_flops > totals[1].compiled_flops > totals[2].compiled_flops > totals[3].compiled_flops
    assert found(small(remat="offload:mlp_hidden")).activation_bytes == totals[0].activation_bytes


def test_flops_are_those_of_the_model_where_nothing_is_recomputed_or_skipped():
    cfg = small({"data": 2, "tensor": 4}, attention="reference")
    per_token = model_flops_per_token(cfg.model, models.build(cfg.model).specs, 256)
    assert found(cfg).model_flops == per_token * 32 * 256 / 8
    assert found(cfg).compiled_flops == pytest.approx(found(cfg).model_flops)
    assert found(replace(cfg, train={"microbatches": 4})).compiled_flops == found(cfg).compiled_flops


@pytest.mark.parametrize("window", [None, 1, 65, 100, 1000])
def test_blocked_attention_computes_the_scores_of_its_blocks(window):
    cfg = small(attention="blocked", sliding_window=window)
    expected = sum((end - start) * (end - first) for first, start, end in _Options(window, None).blocks(256))
    assert share(cfg, sizes_of(cfg)).scores == expected
    if window is None:
        assert expected == 256 * 256 * 5 // 8


def test_scores_of_layers_with_windows_are_averaged_and_the_largest_layer_counts_for_memory():
    cfg = small(attention="blocked", layer_windows=(1, 0, 65))
    alone = [
        share(each, sizes_of(each)).scores
        for each in (small(attention="blocked", sliding_window=window) for window in (1, None, 65))
    ]
    assert share(cfg, sizes_of(cfg)).scores == sum(alone) // 3
    assert share(cfg, sizes_of(cfg)).layer_scores == alone[1]
    # 12 x heads x head_dim for every key that a layer's queries see.
    flops = [
        model_flops_per_token(each, models.build(each).specs, 256)
        for each in (cfg.model, ModelConfig(**{**vars(cfg.model), "layer_windows": ()}))
    ]
    assert flops[1] - flops[0] == 12 * 256 * ((256 - 1) + (256 - 65))


def test_a_norm_after_the_mlp_makes_its_last_product_worth_saving():
    pre, sandwich = (small(remat="full", norm_placement=placement) for placement in ("pre", "sandwich"))
    down = 2 * 256 * 1024 * 3 * 32 * 256
    assert found(sandwich).compiled_flops - found(pre).compiled_flops == down
    kept = replace(sandwich, model={"remat": "save:mlp_out"})
    assert found(sandwich).compiled_flops - found(kept).compiled_flops == down
    stream = 4 * 256 * 32 * 256
    saved = [analytic_memory.saved_bytes(share(cfg, sizes_of(cfg))) for cfg in (sandwich, kept)]
    assert saved[1] - saved[0] == 3 * stream


def test_a_chunked_loss_holds_fewer_logits():
    plain = found(small(attention="splash", vocab_size=8192, tie_embeddings=False, remat="full"))
    chunked = found(
        small(None, {"loss_chunks": 8}, attention="splash", vocab_size=8192, tie_embeddings=False, remat="full")
    )
    assert plain.peak == "loss"
    assert plain.total_bytes - chunked.total_bytes > 4 * 32 * 256 * 8192 / 2


def test_all_gradients_fit_however_small_the_batch():
    estimated = found(small(None, {"global_batch_size": 1}, vocab_size=65536, remat="full", attention="splash"))
    assert estimated.total_bytes >= 2 * estimated.params_bytes + estimated.optimizer_bytes


def test_bounds_of_memory_traffic_are_ordered():
    for case in benchmark.CASES.values():
        estimated = found(case)
        assert 0 < estimated.hbm_bytes_min < estimated.hbm_bytes


def test_a_mesh_that_does_not_fit_is_an_error():
    with pytest.raises(ShardingError, match="heads of size 8"):
        found(small({"tensor": 16}))
    with pytest.raises(ShardingError, match="global_batch_size"):
        found(small({"data": 64}))


def test_the_table_compares_every_case():
    assert [entry["case"] for entry in TABLE] == list(benchmark.CASES)
    assert len(TABLE) >= 30


@pytest.mark.parametrize(
    ("name", "compiled"), [("fsdp", 9_788_281_344), ("hybrid", 11_743_720_448), ("tensor", 4_712_902_144)]
)
def test_layouts_of_256_chips_are_near_the_compiler_too(name, compiled):
    """What `experiments.plan` says of the presets, without the program; libtpu 0.0.42.1, default effort.

    Of their 128,256 words four matrices are whole on every device, which no case of the table has.
    """
    source = config_source.load(f"configs/presets/llama-8b-v5e-256-{name}.json")
    one = candidates.candidate(cli.load_config(source), {}, devices.parse("v5e:16x16"))
    assert one.needed_bytes_per_chip == pytest.approx(compiled, rel=0.25)


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry["case"])
def test_the_committed_table_is_todays_estimate_and_near_the_compiler(entry):
    compiled, estimated = entry["compiled"], entry["estimated"]
    assert benchmark.row(entry["case"], compiled) == entry
    assert estimated["state_bytes"] == pytest.approx(compiled["state_bytes"], rel=0.001)
    assert estimated["total_bytes"] == pytest.approx(compiled["total_bytes"], rel=0.25)
    if compiled["flops"]:
        assert estimated["flops"] == pytest.approx(compiled["flops"], rel=0.02)
    if "muon" not in entry["case"]:
        # The compiler sums some gradients whole where a reduce-scatter would do, for up to twice their bytes.
        assert 0.5 * compiled["sent_bytes"] <= estimated["sent_bytes"] <= 1.01 * compiled["sent_bytes"]
