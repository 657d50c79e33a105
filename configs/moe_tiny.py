"""Do more parameters help at the same compute? A small mixture of experts beside its dense twin, on two CPU cores.

    python -m experiments.train --config=configs/moe_tiny.py
    python -m experiments.train --config=configs/moe_tiny.py --config.model.moe.num_experts=0 --workdir=runs/moe_dense

Switch routing: of 8 experts as wide as the twin's feed-forward half each token sees one, so both have the same active
parameters but for the router.
"""

from ml_collections import ConfigDict

from bigjax.config import CheckpointConfig, Config, DataConfig, LogConfig, ModelConfig, MoeConfig, OptimConfig, TrainConfig
from bigjax.strict import to_config_dict


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
                moe=MoeConfig(num_experts=8, router="switch", capacity_factor=1.25, jitter=0.01, z_loss=1e-3),
            ),
            data=DataConfig(tokenizer="bpe:1024", seq_len=128, document_mask=False),
            train=TrainConfig(steps=800, global_batch_size=16, loss_chunks=4),
            optim=OptimConfig(lr=2e-3, schedule="wsd", warmup_steps=40, decay_steps=300),
            checkpoint=CheckpointConfig(every_steps=400),
            log=LogConfig(sample_prompt="ROMEO.\n", sample_tokens=100),
        )
    )
