"""What a plan says of rows that are split over `mesh.context`: memory and traffic in closed form, and long rows fit."""

import pytest

from bigjax import config
from bigjax.config import MESH_AXES, Config, strict
from bigjax.preflight.plan import candidates, devices
from bigjax.preflight.plan.analytic.estimate import Estimate, estimate
from bigjax.preflight.plan.analytic.share import share
from bigjax.preflight.plan.traffic import sent_bytes
from experiments import config_source
from tests.commands import ROOT

LAYERS, HEADS, KV_HEADS, SIZE = 32, 32, 8, 128
"""Of Llama 3 8B."""


def llama(seq_len: int, rows: int, attention: str = "splash", **mesh) -> Config:
    cfg = strict.from_dict(Config, config_source.load(str(ROOT / "configs/llama.py:8b")))
    model = {"max_seq_len": seq_len, "attention": attention, "remat": "full"}
    train = {"global_batch_size": rows, "microbatches": 1, "loss_chunks": 8}
    cfg = config.replace(cfg, model=model, data={"seq_len": seq_len}, train=train)
    return config.replace(cfg, mesh=dict.fromkeys(MESH_AXES, 1) | mesh)


def planned(cfg: Config) -> Estimate:
    return estimate(cfg, cfg.mesh.sizes)


def sent(cfg: Config) -> dict[tuple[str, tuple[str, ...]], int]:
    return {(c.kind, c.mesh_axes): c.bytes_per_chip for c in planned(cfg).collectives}


@pytest.mark.parametrize("attention", ["splash", "blocked"])
def test_a_chip_needs_as_much_for_a_million_tokens_as_for_thirty_thousand(attention):
    # As many tokens a chip, on more chips: activations stay, and what is stored of the parameters falls.
    short, middle, long = (planned(llama(n * 8192, 1, attention, context=n)) for n in (4, 16, 128))
    assert short.activation_bytes == middle.activation_bytes == long.activation_bytes == 32 * 8192 * 4096 * 2
    assert short.params_bytes == pytest.approx(32 * long.params_bytes, rel=0.01)
    assert short.total_bytes > middle.total_bytes and short.total_bytes > long.total_bytes
    if attention == "blocked":  # a ring holds no more of a row however many share it
        held = [one.total_bytes - one.params_bytes - one.optimizer_bytes - one.gradient_bytes for one in (middle, long)]
        assert held[1] == pytest.approx(held[0], rel=0.25)


def test_llama_8b_fits_with_rows_of_131072_tokens():
    topology = devices.parse("v5p:4x4x8")
    cfg = llama(131_072, 8, fsdp=8, context=16)
    found = candidates.candidate(cfg, {}, topology)
    assert topology.num_chips == 128 and found.needed_bytes_per_chip < topology.chip.hbm_bytes / 4
    # Without the axis, 8 rows are for 8 chips, and 16 chips do the work of one.
    with pytest.raises(Exception, match=r"not divisible by mesh\.fsdp=128"):
        planned(llama(131_072, 8, fsdp=128))


@pytest.mark.parametrize("exchange", ["all_to_all", "gather", "ring"])
def test_what_a_device_sends_to_attend(exchange):
    attention = "blocked" if exchange == "ring" else "splash"
    cfg = llama(131_072, 8, attention, fsdp=8, context=16, context_exchange=exchange)
    tokens, ways, found = 8192, 16, sent(cfg)
    kv, heads = tokens * KV_HEADS * SIZE * 2, tokens * HEADS * SIZE * 2
    over = ("context",)
    if exchange == "all_to_all":
        # Queries, results, keys and values, these twice for 16 ways: forwards, to rematerialise, and backwards.
        one_way = sent_bytes("all-to-all", 2 * heads + 2 * 2 * kv, ways)
        assert found["all-to-all", over] == pytest.approx(LAYERS * 3 * one_way)
    elif exchange == "gather":
        assert found["all-gather", over] == LAYERS * 2 * 2 * kv * (ways - 1)
        assert found["reduce-scatter", over] == LAYERS * 2 * kv * (ways - 1)
    else:
        # Keys and values go round three times, the gradients of both, in float32, once, and one step more to be home.
        assert found["collective-permute", over] == LAYERS * 2 * (3 * (ways - 1) * kv + ways * 2 * kv)


def test_the_scores_of_a_part_of_a_row():
    whole, split = share(llama(32_768, 4, fsdp=4), llama(32_768, 4, fsdp=4).mesh.sizes), llama(32_768, 1, context=4)
    part = share(split, split.mesh.sizes)
    assert (part.tokens, part.loss_tokens, part.residual_len) == (8192, 8192, 8192)
    assert part.scores == whole.scores // 4 and part.exchange == "gather"
    assert share(llama(32_768, 1, "blocked", context=4), split.mesh.sizes).stored_scores is False


def test_a_search_splits_rows_where_there_are_fewer_than_devices():
    topology = devices.parse("v5p:4x4x8")
    few, many = (set(map(str, candidates.meshes(llama(32_768, rows), topology))) for rows in (8, 128))
    assert any("'mesh.context': 16" in one for one in few) and not any("mesh.context" in one for one in many)
