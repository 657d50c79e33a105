"""BERT (Devlin et al. 2019) by the published shapes, pre-trained on masked tokens.

    python -m experiments.train --config=configs/bert.py:minilm --config.data.tokenizer=hf:PATH

`base`, `large` and `base-chinese` are the paper's; `minilm` is the 6-layer, 384-wide student of Wang et al. 2020.
Batch, length, steps and learning rate of the first three are those of appendix A.2: 256 rows of 512 tokens, 1,000,000
steps, Adam at 1e-4 with 10,000 steps of warmup and linear decay. The token types are there, all of the first kind.
`base-next-sentence` is the paper's own pre-training, in which rows are pairs of texts and half of the second ones are
of another document.

As shipped it fits base on v5e:1x1, large on v5e:1x1 and minilm on v5e:1x1, by the analytic model: what is `auto` is
chosen for the chips.
"""

import dataclasses

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig, strict
from bigjax.config.strict import ConfigError

SHAPES = {
    "base": (30522, 12, 768, 12),
    "large": (30522, 24, 1024, 16),
    "base-chinese": (21128, 12, 768, 12),
    "minilm": (30522, 6, 384, 12),
}
"""Vocabulary, layers, width, heads."""

ARGUMENTS = (*SHAPES, "base-next-sentence")


def model(vocab_size: int, num_layers: int, d_model: int, num_heads: int) -> ModelConfig:
    """Return a BERT of some shape."""
    return ModelConfig(
        family="encoder",
        vocab_size=vocab_size,
        num_layers=num_layers,
        d_model=d_model,
        num_heads=num_heads,
        max_seq_len=512,
        token_types=2,
        norm_placement="post",
        norm_eps=1e-12,
        activation="gelu",
        dropout=0.1,
    )


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of a size."""
    name = arg or "base"
    if name not in ARGUMENTS:
        raise ConfigError(f"configs/bert.py has no {name!r}, only {', '.join(ARGUMENTS)}")
    paired = name.endswith("-next-sentence")
    cfg = Config(
        model=dataclasses.replace(
            model(*SHAPES[name.removesuffix("-next-sentence")]), head="lm_next_sentence" if paired else "lm"
        ),
        data=DataConfig(tokenizer="bpe:16384", seq_len=512, document_mask=False),
        train=TrainConfig(
            steps=1_000_000, global_batch_size=256, objective="masked_lm_next_sentence" if paired else "masked_lm"
        ),
        optim=OptimConfig(
            name="adamw", lr=1e-4, schedule="linear", warmup=0.01, end_lr_ratio=0.0, weight_decay=0.01, b2=0.999
        ),
    )
    return strict.to_config_dict(cfg)
