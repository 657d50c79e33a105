"""How do GPT-2's and GPT-3's sizes behave on this text and these devices?

    python -m experiments.train --config=configs/gpt.py:d12 --config.data.sources='text:corpus/*.txt' --workdir=runs/d12

GPT-2 (Radford et al. 2019, table 2) by name or depth: gpt2-small = d12 (the default), gpt2-medium = d24, gpt2-large =
d36, gpt2-xl = d48, with 124M, 355M, 774M and 1.56B parameters. The paper gives batches of 512 rows but neither learning
rates nor length: the learning rates are those of the GPT-3 rows nearest in size, and a run sees 10B tokens. On that
many tokens of web text d12 reaches a validation loss of about 3.3 (Karpathy's llm.c reproduction), in about 8e18 FLOPs.

GPT-3 (Brown et al. 2020, table 2.1 and appendix B), eight sizes from gpt3-small to gpt3-175b, with heads and widths as
the table prints them, so heads x head_dim is not d_model for gpt3-xl (24 heads of 128, d_model 2048: 1.52B parameters,
where the table's own 1.3B would be 16 heads) and gpt3-13b (d_model 5140, which divides by 4 devices but not by 8). A
run sees 300B tokens. "Alternating dense and locally banded" attention (section 2.1) is taken to begin with a dense
layer, and the width of the band, which the paper does not give, to be the 256 tokens of GPT-Neo, the open replication
(Black et al. 2021); --config.model.layer_windows="()" makes every layer dense. Batches of "0.5M" to "3.2M" tokens are
the nearest multiple of 256 rows: 256, 512, 1024 and 1536 rows of 2048. As in appendix B, the batch grows from 32k
tokens to that over the first 4 to 12 billion tokens ("depending on the model size": here 4, 8, 8 and 12 for these four
batches), and the learning rate warms up over 375M tokens and falls by a cosine to a tenth at 260B, all counted in
tokens, not in steps. While the batch is small, of --config.train.microbatches only those are computed that it fills.

The tokenizer is trained on the training documents. For GPT-2's own, add --config.data.tokenizer=hf:PATH/tokenizer.json.

As shipped it fits d12 on v5e:1x1, d24 on v5e:1x1, d36 on v5e:2x2, d48 on v5e:2x2, gpt3-small on v5e:1x1, gpt3-medium on
v5e:1x1, gpt3-large on v5e:2x2, gpt3-xl on v5e:2x2, gpt3-2.7b on v5e:2x4, gpt3-6.7b on v5e:4x4, gpt3-13b on v5e:4x8 and
gpt3-175b on v5p:4x4x4, by the analytic model: what is `auto` is chosen for the chips.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig, replace
from bigjax.config.strict import ConfigError, to_config_dict
from bigjax.data.batches import ramp as batch_ramp


class Size(NamedTuple):
    """A row of a published table."""

    num_layers: int
    d_model: int
    num_heads: int
    head_dim: int
    seq_len: int
    global_batch_size: int
    lr: float
    tokens: int


GPT2_TOKENS = 10_000_000_000
GPT3_TOKENS = 300_000_000_000
GPT3_DECAYED_AT = 260_000_000_000
GPT3_RAMP_FROM = 32_768
GPT3_RAMP_TOKENS = {256: 4_000_000_000, 512: 8_000_000_000, 1024: 8_000_000_000, 1536: 12_000_000_000}
"""By rows of the full batch."""
GPT3_WINDOWS = (0, 256)
"""Dense and banded attention in turn."""
WARMUP_TOKENS = 375_000_000
"""Appendix B of the GPT-3 paper; also used for GPT-2, whose paper gives none."""

SIZES = {
    "gpt2-small": Size(12, 768, 12, 64, 1024, 512, 6.0e-4, GPT2_TOKENS),
    "gpt2-medium": Size(24, 1024, 16, 64, 1024, 512, 3.0e-4, GPT2_TOKENS),
    "gpt2-large": Size(36, 1280, 20, 64, 1024, 512, 2.5e-4, GPT2_TOKENS),
    "gpt2-xl": Size(48, 1600, 25, 64, 1024, 512, 2.0e-4, GPT2_TOKENS),
    "gpt3-small": Size(12, 768, 12, 64, 2048, 256, 6.0e-4, GPT3_TOKENS),
    "gpt3-medium": Size(24, 1024, 16, 64, 2048, 256, 3.0e-4, GPT3_TOKENS),
    "gpt3-large": Size(24, 1536, 16, 96, 2048, 256, 2.5e-4, GPT3_TOKENS),
    "gpt3-xl": Size(24, 2048, 24, 128, 2048, 512, 2.0e-4, GPT3_TOKENS),
    "gpt3-2.7b": Size(32, 2560, 32, 80, 2048, 512, 1.6e-4, GPT3_TOKENS),
    "gpt3-6.7b": Size(32, 4096, 32, 128, 2048, 1024, 1.2e-4, GPT3_TOKENS),
    "gpt3-13b": Size(40, 5140, 40, 128, 2048, 1024, 1.0e-4, GPT3_TOKENS),
    "gpt3-175b": Size(96, 12288, 96, 128, 2048, 1536, 0.6e-4, GPT3_TOKENS),
}
ALIASES = {"d12": "gpt2-small", "d24": "gpt2-medium", "d36": "gpt2-large", "d48": "gpt2-xl"}
ARGUMENTS = (*ALIASES, *SIZES)
"""Sizes whose parameters and optimizer state are split over devices rather than copied to each."""


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of one size.

    Raises:
        ConfigError: there is no such size.
    """
    arg = arg or "d12"
    if arg not in ARGUMENTS:
        raise ConfigError(f"there is no size {arg!r}, only {', '.join(ARGUMENTS)}")
    name = ALIASES.get(arg, arg)
    size = SIZES[name]
    tokens_per_step = size.global_batch_size * size.seq_len
    # The 25 heads of gpt2-xl do not divide by any usual mesh.tensor.
    whole = ("heads", "kv_heads") if size.num_heads % 2 else ()
    cfg = Config(
        model=ModelConfig(
            vocab_size=50257,
            num_layers=size.num_layers,
            d_model=size.d_model,
            num_heads=size.num_heads,
            head_dim=size.head_dim,
            max_seq_len=size.seq_len,
            dtype="bfloat16",
        ),
        data=DataConfig(tokenizer="bpe:50257", seq_len=size.seq_len),
        train=TrainConfig(
            steps=round(size.tokens / tokens_per_step),
            global_batch_size=size.global_batch_size,
            eval_every_steps=1000,
        ),
        optim=OptimConfig(lr=size.lr, warmup=WARMUP_TOKENS / size.tokens),
        mesh=MeshConfig(allow_replicated=whole),
    )
    return to_config_dict(_as_gpt3(cfg) if name.startswith("gpt3") else cfg)


def _as_gpt3(cfg: Config) -> Config:
    """Return a run with what sets GPT-3's apart: bands, a batch that grows, and a floor before the end."""
    rows = cfg.train.global_batch_size
    ramp = {"ramp_batch_size": GPT3_RAMP_FROM // cfg.data.seq_len, "ramp_tokens": GPT3_RAMP_TOKENS[rows]}
    cfg = replace(
        cfg,
        model={"layer_windows": GPT3_WINDOWS},
        train=ramp,
        optim={"decay": (GPT3_DECAYED_AT - WARMUP_TOKENS) / GPT3_TOKENS},
    )
    return replace(cfg, train={"steps": batch_ramp.build(cfg).steps_for(GPT3_TOKENS // cfg.data.seq_len)})
