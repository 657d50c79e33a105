"""What rows that are split over `mesh.context` cannot be with is refused by name before the first step."""

import re

import pytest

from bigjax import config, models, sharding
from bigjax.config import Config, ConfigError, DataConfig, MeshConfig, ModelConfig, TrainConfig, exchange, strict
from bigjax.models.family import Family
from bigjax.sharding import ShardingError
from experiments import config_source
from tests.commands import ROOT
from tests.on_meshes import abstract_mesh


def run(**changes) -> Config:
    """Return a small run, its sections changed."""
    sizes = {"vocab_size": 64, "num_layers": 1, "d_model": 64, "num_heads": 8, "num_kv_heads": 2, "max_seq_len": 128}
    cfg = Config(
        model=ModelConfig(**sizes, positions="rotary"),
        data=DataConfig(seq_len=64),
        train=TrainConfig(global_batch_size=8),
        mesh=MeshConfig(data=1, context=4),
    )
    return config.replace(cfg, **changes)


def fitted(cfg: Config) -> sharding.Layout:
    num_devices = abs(cfg.mesh.context * cfg.mesh.tensor * cfg.mesh.sizes["fsdp"] * cfg.mesh.data)
    return sharding.fit(cfg, abstract_mesh(cfg.mesh, num_devices), models.build(cfg.model).specs)


EXPERTS = {"moe.num_experts": 4, "moe.top_k": 2, "moe.router": "topk"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mesh": {"context": 16, "context_exchange": "all_to_all"}},
            "mesh.context_exchange='all_to_all' splits 8 heads, which are not divisible by mesh.context=16: set "
            "mesh.context_exchange='gather' or 'ring'",
        ),
        (
            {"mesh": {"context": 8, "tensor": 2, "context_exchange": "all_to_all"}},
            "splits 4 heads (8 over mesh.tensor=2), which are not divisible by mesh.context=8",
        ),
        (
            {"data": {"seq_len": 60}, "mesh": {"context_exchange": "ring"}},
            "data.seq_len=60 is not divisible by 2 * mesh.context=4, two pieces of a row on each device: set "
            "data.seq_len=64",
        ),
        (
            {"data": {"seq_len": 62}, "mesh": {"context_exchange": "all_to_all"}},
            "data.seq_len=62 is not divisible by mesh.context=4: set data.seq_len=64",
        ),
        ({"model": {"dropout": 0.1}}, "mesh.context=4: model.dropout=0.1 is drawn for whole rows: set it to 0"),
        (
            {"model": {"attention": "xla"}, "mesh": {"context_exchange": "ring"}},
            "mesh.context_exchange='ring' cannot be with model.attention='xla': set model.attention to 'reference' or "
            "'blocked', or mesh.context_exchange to 'all_to_all' or 'gather'",
        ),
        (
            {"model": {"attention": "blocked"}, "mesh": {"context_exchange": "gather"}},
            "mesh.context_exchange='gather' cannot be with model.attention='blocked'",
        ),
        (
            {"model": {"attention": "splash"}, "mesh": {"context_exchange": "gather"}},
            "model.attention='splash' needs a multiple of 128 tokens of a row on each device, not the 16 that "
            "mesh.context=4 leaves of data.seq_len=64",
        ),
        (
            {"train": {"loss_chunks": 32}},
            "the 16 tokens of a row that mesh.context=4 leaves on a device are not divisible by train.loss_chunks=32: "
            "set train.loss_chunks=16",
        ),
        (
            {"model": {**EXPERTS, "moe.capacity_factor": 1.25}, "mesh": {"context_exchange": "ring"}},
            "model.moe.capacity_factor=1.25 counts the tokens of groups of 64, which mesh.context=4 tears apart: set "
            "model.moe.group_size=8, or model.moe.capacity_factor=None",
        ),
        ({"mesh": {"fsdp": 32}}, "is not divisible by mesh.fsdp=32 * mesh.context=4 = 128"),
    ],
)
def test_what_cannot_be_split_is_refused(changes, message):
    with pytest.raises(ShardingError, match=re.escape(message)):
        fitted(run(**changes))


@pytest.mark.parametrize("source", ["bert.py", "rnn.py", "t5.py", "regression.py"])
def test_families_that_cannot_split_rows(source):
    cfg = strict.from_dict(Config, config_source.load(str(ROOT / "configs" / source)))
    cfg = config.replace(cfg, mesh={"data": 1, "context": 2})
    with pytest.raises(ShardingError, match=re.escape("mesh.context=2: not yet for this model; set mesh.context=1")):
        fitted(cfg)


def test_a_family_of_ones_own_says_itself_whether_it_can():
    assert Family(specs=lambda cfg: {}, apply=lambda: None).mesh_axes == ()


def test_nothing_is_exchanged_within_whole_rows():
    message = (
        "mesh.context_exchange='ring' is between the parts of a row, but mesh.context=1 leaves rows whole: set "
        "mesh.context=2, or mesh.context_exchange='auto'"
    )
    with pytest.raises(ConfigError, match=re.escape(message)):
        run(mesh={"context": 1, "context_exchange": "ring"})


@pytest.mark.parametrize(
    ("model", "seq_len", "ways", "chosen"),
    [
        # Of 8 heads and 2 kv heads of 8: 2 * 8 + 2 * 2 numbers a feature of each token, half of it to another device,
        # against 2 * 2 to it.
        ({}, 64, 2, "ring"),
        # 3/4 of 2 * 8 + 2 * 4, against 3 * 2 * 2.
        ({}, 64, 4, "ring"),
        ({"attention": "xla"}, 64, 4, "gather"),
        ({"num_kv_heads": 8}, 64, 4, "all_to_all"),
        ({"num_kv_heads": 8}, 64, 16, "ring"),
        ({"num_kv_heads": 8, "attention": "splash"}, 2048, 16, "gather"),
        # 8 heads' scores of 2^16 tokens on 8 devices take 16 GiB.
        ({"num_kv_heads": 8}, 2**16, 8, "ring"),
        ({"num_kv_heads": 8, "attention": "splash"}, 2**16, 8, "all_to_all"),
    ],
)
def test_auto_chooses_by_heads_and_bytes(model, seq_len, ways, chosen):
    layout = fitted(run(model=model, data={"seq_len": seq_len}, mesh={"context": ways}))
    assert layout.exchange == chosen
    assert layout.notes[-1] == f"mesh.context={ways}: the parts of a row attend to each other by {chosen}"


def test_what_is_sent_is_counted_in_numbers():
    model = run().model
    # 8 queries, 8 results, 4 keys and 4 values of 8 numbers each, of which 3 of 4 parts go to others.
    assert exchange.sent(model, "all_to_all", 4, 1) == (8 + 8 + 4 + 4) * 8 * 3 / 4
    assert exchange.sent(model, "gather", 4, 1) == exchange.sent(model, "ring", 4, 1) == 3 * (2 + 2) * 8
    assert exchange.heads_of_device(model, 4) == (2, 1)
