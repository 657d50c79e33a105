"""FLOPs of models whose head is not applied to every token, against counts written out by hand."""

import pytest

from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.models import build
from bigjax.train.flops import model_flops_per_token, run_flops_per_token

D, F, V, L, S = 8, 20, 50, 3, 40
BELOW = L * (4 * D * D + 2 * D * F)
KEYS = 12 * D * S * L
SIZES = {"family": "encoder", "vocab_size": V, "num_layers": L, "d_model": D, "num_heads": 2, "d_ff": F}


@pytest.mark.parametrize(
    ("model", "train", "head", "positions"),
    [
        ({}, {"objective": "masked_lm"}, D * D + V * D, 6),  # 15 % of 40
        ({"tie_embeddings": False}, {"objective": "masked_lm"}, D * D + V * D, 6),
        ({"head": "classification", "num_classes": 5}, {"objective": "classification"}, D * D + 5 * D, 1),
    ],
    ids=str,
)
def test_the_head_of_an_encoder_counts_where_it_is_applied(model, train, head, positions):
    cfg = Config(ModelConfig(**SIZES, **model), DataConfig(seq_len=S), TrainConfig(**train))
    specs = build(cfg.model).specs
    per_row = 6 * (S * BELOW + positions * head) + S * KEYS
    assert run_flops_per_token(cfg, specs) * S == pytest.approx(per_row)
    assert model_flops_per_token(cfg.model, specs, S) == 6 * (BELOW + head) + KEYS


def test_pairs_are_pooled_once_a_row():
    model = ModelConfig(**SIZES, head="lm_next_sentence", token_types=2)
    cfg = Config(model, DataConfig(seq_len=S), TrainConfig(objective="masked_lm_next_sentence"))
    per_row = 6 * (S * BELOW + 6 * (D * D + V * D) + 1 * (D * D + 2 * D)) + S * KEYS
    assert run_flops_per_token(cfg, build(model).specs) * S == pytest.approx(per_row)


def test_the_head_of_a_decoder_counts_everywhere():
    cfg = Config(ModelConfig(**SIZES | {"family": "decoder"}), DataConfig(seq_len=S))
    specs = build(cfg.model).specs
    assert run_flops_per_token(cfg, specs) == model_flops_per_token(cfg.model, specs, S) == 6 * (BELOW + V * D) + KEYS
