"""The rule by which a run is made small."""

import dataclasses

import pytest

from bigjax import config, models, sharding
from bigjax.config import Config, DataConfig, MeshConfig, ModelConfig, MoeConfig, OptimConfig, RopeConfig, TrainConfig
from bigjax.config.lengths import lengths
from bigjax.data.batches import ramp as batch_ramp
from bigjax.params import count
from bigjax.preflight.shrink import shrink
from tests.conftest import mesh_of
from tests.on_meshes import MESHES, SPARSE_MESHES, discovered

CONFIGS = discovered()

SIZES = {
    "model": {"vocab_size", "num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff", "max_seq_len"}
    | {"encdec"},
    "data": {"seq_len", "target_len", "doc_stride"},
    "train": {"steps", "global_batch_size", "microbatches", "loss_chunks", "eval_every_steps", "eval_batches"}
    | {"ramp_batch_size", "ramp_tokens"},
    "optim": {"lr", "warmup", "decay"},
}
"""What may change; `rope`, the windows and `moe` have tests of their own."""
LENGTHS = {"rope", "sliding_window", "layer_windows", "moe"}


def options(section, sizes: set[str]) -> dict:
    return {name: value for name, value in vars(section).items() if name not in sizes | LENGTHS}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_keeps_its_options_and_fits_eight_devices(name):
    cfg = CONFIGS[name]
    small = shrink(cfg)
    for section, sizes in SIZES.items():
        assert options(getattr(small, section), sizes) == options(getattr(cfg, section), sizes)
    assert count(models.build(small.model).specs) < 500_000
    assert shrink(small) == small
    for axes in (MESHES | (SPARSE_MESHES if small.model.moe.num_experts else {})).values():
        if axes.get("shard_sequence") and small.data.seq_len == 1:
            continue  # a record has nothing to split
        mesh_cfg, mesh = mesh_of(**{"allow_replicated": small.mesh.allow_replicated, **axes})
        layout = sharding.layout(mesh_cfg, mesh, models.build(small.model).specs)
        sharding.check_batch(small.train.global_batch_size, small.train.microbatches, layout)
        if small.data.seq_len > 1:  # where rows are of tokens
            sharding.check_sequence(small.data.seq_len, layout)


def test_a_batch_that_grows_still_does_so_in_a_few_steps():
    small = shrink(big(train={"ramp_batch_size": 16, "ramp_tokens": 4_000_000_000, "microbatches": 4}))
    assert (small.train.global_batch_size, small.train.microbatches) == (16, 2)
    assert batch_ramp.build(small).steps == (0, 6)


def big(**sections) -> Config:
    cfg = Config(
        model=ModelConfig(vocab_size=50_000, num_layers=24, d_model=2048, num_heads=16, max_seq_len=4096),
        data=DataConfig(seq_len=4096),
        train=TrainConfig(steps=10_000, global_batch_size=512),
    )
    return config.replace(cfg, **sections)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"),
    [(16, 16, (2, 2)), (32, 8, (8, 2)), (64, 8, (8, 2)), (16, 1, (4, 1)), (25, 25, (3, 3)), (35, 7, (9, 3))],
)
def test_heads_keep_their_ratio_and_oddness(heads, kv_heads, expected):
    model = shrink(big(model={"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": 64})).model
    assert (model.num_heads, model.num_kv_heads) == expected


@pytest.mark.parametrize(("vocab_size", "expected"), [(50_257, 65), (50_304, 64), (30, 30), (31, 31)])
def test_vocabulary_keeps_its_oddness(vocab_size, expected):
    assert shrink(big(model={"vocab_size": vocab_size})).model.vocab_size == expected


def test_attention_narrower_or_wider_than_the_model_stays_so():
    model = shrink(big()).model
    assert model.d_model == model.num_heads * model.head_dim
    model = shrink(big(model={"head_dim": 64})).model
    assert model.d_model != model.num_heads * model.head_dim


def test_lengths_divide_by_chunks_and_devices():
    small = shrink(big(train={"loss_chunks": 64, "microbatches": 8}))
    assert (small.train.loss_chunks, small.train.microbatches, small.train.global_batch_size) == (4, 2, 16)
    assert (small.data.seq_len, small.model.max_seq_len) == (32, 32)
    small = shrink(big(data={"seq_len": 3072}, train={"loss_chunks": 3}))
    assert (small.data.seq_len, small.train.loss_chunks, small.model.max_seq_len) == (48, 3, 96)


@pytest.mark.parametrize(
    ("attention", "seq_len", "head_dim"), [("reference", 32, 16), ("blocked", 128, 16), ("splash", 128, 128)]
)
def test_kernels_get_the_sizes_they_need(attention, seq_len, head_dim):
    small = shrink(big(model={"attention": attention}))
    assert (small.data.seq_len, small.model.head_dim) == (seq_len, head_dim)


def test_lengths_inside_the_model_shrink_with_the_row():
    rope = RopeConfig(scaling="yarn", factor=4.0, original_max_seq_len=1024)
    small = shrink(big(model={"sliding_window": 1024, "positions": "rotary", "rope": rope}))
    assert small.data.seq_len / 4096 == small.model.sliding_window / 1024
    assert small.model.rope == dataclasses.replace(rope, original_max_seq_len=8)


@pytest.mark.parametrize(
    ("windows", "layers", "expected"), [((1024, 0), 2, (8, 0)), ((512,) * 5 + (0,), 6, (4,) * 5 + (0,))]
)
def test_a_whole_period_of_windows_is_kept(windows, layers, expected):
    small = shrink(big(model={"layer_windows": windows}))
    assert (small.model.num_layers, small.model.layer_windows, small.data.seq_len) == (layers, expected, 32)
    assert shrink(small) == small


def test_schedule_keeps_its_proportions():
    small = shrink(big(optim=vars(OptimConfig(schedule="wsd", warmup=100, decay=3000, lr=1e-4))))
    assert (small.train.steps, lengths(small.optim, 20), small.optim.lr) == (20, (1, 6), 0.01)
    whole = shrink(big(optim={"schedule": "wsd", "decay": 10_000, "lr": 1e-4}))
    assert lengths(whole.optim, 20) == (0, 19)


def test_mesh_and_start_are_left_to_the_caller():
    cfg = config.replace(big(), mesh={"fsdp": 64, "tensor": 2, "shard_sequence": True, "allow_replicated": ("heads",)})
    small = shrink(dataclasses.replace(cfg, init_from="runs/before"))
    assert small.mesh == MeshConfig(allow_replicated=("heads",))
    assert small.init_from is None


@pytest.mark.parametrize(
    ("sizes", "base"),
    [
        ({}, {"d_model": 32, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "d_ff": 128}),
        ({"mup.base_d_ff": 8192}, {"d_ff": 256}),
        ({"mup.base_head_dim": 32}, {"num_heads": 4, "head_dim": 8}),
        ({"num_layers": 24, "mup.base_num_layers": 6}, {"num_layers": 1}),
        ({"num_layers": 6, "mup.base_num_layers": 24}, {"num_layers": 4}),
        ({"num_kv_heads": 1, "mup.base_num_kv_heads": 1}, {"num_heads": 2, "num_kv_heads": 1}),
        ({"mup.base_d_model": 4096}, {"d_model": 128, "num_heads": 8, "d_ff": 512}),
        ({"mup.base_d_model": 2048}, {"d_model": 64, "num_heads": 4, "d_ff": 256}),
        ({"d_ff": 8192 + 1, "mup.base_d_ff": 2048}, {"d_ff": 257}),
        ({"moe": MoeConfig(num_experts=64, d_ff=1024)}, {"d_ff": 128}),
    ],
)
def test_what_grew_since_the_base_of_mup_still_did(sizes, base):
    grown = {"parametrization": "mup", "mup.base_d_model": 512, "num_heads": 16, "num_kv_heads": 8} | sizes
    small = shrink(big(model=grown))
    assert {name: getattr(small.model.mup, f"base_{name}") for name in base} == base
    assert shrink(small) == small
    assert models.build(small.model).specs  # the base shape is one of whole numbers


def test_experts_shrink_and_the_router_stays():
    moe = MoeConfig(num_experts=2048, every=2, router="gshard", capacity_factor=2.0, group_size=512, d_ff=8192)
    small = shrink(big(model={"moe": moe, "num_layers": 36}))
    expected = dataclasses.replace(moe, num_experts=8, group_size=8, d_ff=small.model.d_model // 2)
    assert (small.model.moe, small.model.num_layers, small.data.seq_len) == (expected, 2, 32)
    few = MoeConfig(num_experts=6, every=3, top_k=5)
    small = shrink(big(model={"moe": few}))
    assert small.model.moe == dataclasses.replace(few, d_ff=small.model.d_model // 2)
    assert small.model.num_layers == 3
    assert shrink(big(model={"moe": MoeConfig(num_experts=64, top_k=6)})).model.moe.top_k == 4
