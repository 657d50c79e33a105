"""Do more parameters help at the same compute? A small mixture of experts beside its dense twin, on two CPU cores.

    python -m experiments.train --config=configs/moe_tiny.py
    python -m experiments.train --config=configs/moe_tiny.py --config.model.moe.num_experts=0 --workdir=runs/moe_dense

A token sees 2 of 8 experts, each half as wide as the twin's feed-forward half, so that both have the same active
parameters but for the router. Each run is 1.6M tokens, about one epoch of Shakespeare, and takes about 4 minutes.
Held-out bits per byte, one seed each, JAX 0.10.2:

    8 experts, top-2 with renormalised weights (this config)                              2.160
    dense twin                                                                            2.189
    8 full-width experts, Switch top-1 (router=switch, top_k=0, d_ff=0, capacity 1.25)    2.287

Switch scales what an expert says by its probability, which starts at 1/8: too slow for so short a run.
"""

from ml_collections import ConfigDict

from bigjax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LogConfig,
    ModelConfig,
    MoeConfig,
    OptimConfig,
    TrainConfig,
)
from bigjax.config.strict import to_config_dict


def get_config() -> ConfigDict:
    """Return the config."""
    return to_config_dict(
        Config(
            model=ModelConfig(
                vocab_size=1024,
                num_layers=4,
                d_model=128,
                num_heads=4,
                max_seq_len=128,
                positions="rotary",
                norm="rmsnorm",
                activation="relu_squared",
                bias="none",
                qk_norm=True,
                attention="blocked",
                layers="unroll",
                moe=MoeConfig(num_experts=8, top_k=2, capacity_factor=2.5, d_ff=256, z_loss=1e-3),
            ),
            data=DataConfig(tokenizer="bpe:1024", seq_len=128, document_mask=False),
            train=TrainConfig(steps=800, global_batch_size=16, loss_chunks=4),
            optim=OptimConfig(lr=2e-3, schedule="wsd", warmup=0.05, decay=0.375),
            checkpoint=CheckpointConfig(every_steps=400),
            log=LogConfig(sample_prompt="ROMEO.\n", sample_tokens=100),
        )
    )
