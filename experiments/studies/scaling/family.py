"""The models of the study: byte-level decoders on Shakespeare, of which one dial, the depth, sets everything else.

As in `configs/scaling.py`, made small: width D = 8 L in L heads of 8, so N = 12 L D^2 + 256 D parameters in the
matrices of the blocks and the table of bytes, which is also the output, and a learning rate that falls as 1 / D. The
batch is 1,024 bytes throughout, so a budget of C FLOPs buys C / 6N bytes, in whole steps.
"""

from bigjax.config import CheckpointConfig, Config, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.science.sweeps import Change

HEAD_DIM = 8
SEQ_LEN, ROWS = 128, 8
LR_TIMES_WIDTH = 0.24
WARMUP = 0.1
"""Share of the steps."""


def num_parameters(depth: int) -> int:
    """Return the parameters that multiply activations: the matrices of the blocks and the output."""
    d_model = HEAD_DIM * depth
    return 12 * depth * d_model**2 + 256 * d_model


def steps_for(depth: int, flops: float) -> int:
    """Return the steps that `flops` buy at 6 FLOPs a parameter and token."""
    return max(round(flops / (6 * num_parameters(depth) * SEQ_LEN * ROWS)), 10)


def point(depth: int, flops: float) -> Change:
    """Return what changes with the depth and the budget."""
    steps = steps_for(depth, flops)
    values = {
        "model.num_layers": depth,
        "model.d_model": HEAD_DIM * depth,
        "model.num_heads": depth,
        "optim.lr": LR_TIMES_WIDTH / (HEAD_DIM * depth),
        "train.steps": steps,
        "train.eval_every_steps": max(steps // 10, 1),
    }
    return Change(values, f"d{depth} {flops:.3g}", tuple(values))


def base() -> Config:
    """Return the config of which every run of the study is a change."""
    return Config(
        model=ModelConfig(
            num_layers=4,
            d_model=4 * HEAD_DIM,
            num_heads=4,
            max_seq_len=SEQ_LEN,
            positions="rotary",
            norm="rmsnorm",
            activation="relu_squared",
            bias="none",
            tie_embeddings=True,
            qk_norm=True,
            layers="unroll",
        ),
        data=DataConfig(seq_len=SEQ_LEN, document_mask=False),
        train=TrainConfig(steps=100, global_batch_size=ROWS, eval_batches=64),
        optim=OptimConfig(schedule="cosine", warmup=WARMUP, weight_decay=0.0),
        checkpoint=CheckpointConfig(every_steps=1000),
        log=LogConfig(every_steps=50, tensorboard=False, plot=False),
    )
