"""What does GShard's sparse Transformer need, from 12.5B to 600B parameters?

    python -m experiments.plan --config=configs/gshard.py:600b --topology=v4:8x16x16 --config.mesh.expert=2048

The six sparse models of Lepikhin et al. (2020), table 1, by experts and layers of encoder and decoder together: 12.5b
(128 experts, 6 + 6 layers; the default), 37b (128, 18 + 18), 50b (512, 6 + 6), 150b (512, 18 + 18), 200b (2048, 6 + 6),
600b (2048, 18 + 18). From appendix A.2: width 1024, feed-forward and expert width 8192, 16 heads of 128, dropout 0.1,
Adafactor with a learning rate of 1 / sqrt(step) after 10,000 steps. Every other layer is sparse, in both stacks; top-2
gating by algorithm 1, a capacity of 2 N / (G E). A trillion tokens (section 4.4) in batches of 4M, or of 1M where there
are fewer than 2048 experts (table 3).

Not the paper's: one vocabulary of 64,000 for both sides, where it has 64,000 to read and 32,000 to write; products in
bfloat16; a learning rate that rises to where theirs starts. Not published: the length of rows, positions (here
sinusoidal), where norms stand (before each half), and the weight of the auxiliary loss (1: it is at most 1 / E).

    name     parameters, here   active for a token
    12.5b              13.20B                0.52B
    37b                39.48B                1.43B
    50b                51.86B                0.52B
    150b              155.45B                1.43B
    200b              206.49B                0.53B
    600b              619.33B                1.46B

All are 3 to 7 % above the table's figures: the experts alone, 2 x 1024 x 8192 weights each, make 618B of the 600B.

As shipped it fits 12.5b on v5e:4x8, by the analytic model: what is `auto` is chosen for the chips.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, ModelConfig, MoeConfig, OptimConfig, TrainConfig
from bigjax.config.strict import ConfigError, to_config_dict


class Size(NamedTuple):
    """A row of table 1, and its batch in table 3."""

    num_experts: int
    num_layers: int
    batch_tokens: int


SIZES = {
    "12.5b": Size(128, 12, 2**20),
    "37b": Size(128, 36, 2**20),
    "50b": Size(512, 12, 2**20),
    "150b": Size(512, 36, 2**20),
    "200b": Size(2048, 12, 2**22),
    "600b": Size(2048, 36, 2**22),
}
ARGUMENTS = tuple(SIZES)
SEQ_LEN = 1024
VOCABULARY, LAST_SPECIAL = 64_000, 4
"""The ids after the vocabulary are for padding and the like."""

TOKENS = 10**12
WARMUP_STEPS = 10_000


def get_config(arg: str | None = None) -> ConfigDict:
    """Return the config of one row of the table.

    Raises:
        ConfigError: there is no such row.
    """
    arg = arg or "12.5b"
    if arg not in ARGUMENTS:
        raise ConfigError(f"there is no size {arg!r}, only {', '.join(ARGUMENTS)}")
    size = SIZES[arg]
    steps = round(TOKENS / size.batch_tokens)
    return to_config_dict(
        Config(
            model=ModelConfig(
                family="encdec",
                vocab_size=VOCABULARY,
                num_layers=size.num_layers // 2,
                encdec={"num_decoder_layers": size.num_layers // 2},
                d_model=1024,
                num_heads=16,
                head_dim=128,
                d_ff=8192,
                positions="sinusoidal",
                activation="relu",
                bias="none",
                scale_embeddings=True,
                dropout=0.1,
                init_std=1024**-0.5,
                moe=MoeConfig(
                    num_experts=size.num_experts, every=2, router="gshard", capacity_factor=2.0, aux_loss=1.0
                ),
                dtype="bfloat16",
            ),
            data=DataConfig(
                sources=("tsv:corpus/*.tsv",),
                tokenizer=f"bpe:{VOCABULARY - LAST_SPECIAL}",
                seq_len=SEQ_LEN,
                target_len=SEQ_LEN,
            ),
            train=TrainConfig(
                steps=steps,
                global_batch_size=size.batch_tokens // SEQ_LEN,
                objective="seq2seq",
                eval_every_steps=1000,
            ),
            optim=OptimConfig(
                name="adafactor",
                lr=WARMUP_STEPS**-0.5,
                schedule="inverse_sqrt",
                warmup=WARMUP_STEPS / steps,
                weight_decay=0.0,
                grad_clip=None,
            ),
        )
    )
