"""Does an encoder-decoder attend, and does it learn? It copies rows of up to 8 out of 10 symbols.

    python -m experiments.train --config=configs/copy_task.py
    python -m experiments.evaluate --workdir=runs/copy_task --tasks=exact_match

A Transformer of 2 + 2 layers and 64 features writes all 1,129 held-out rows without a mistake after 1,000 steps. The
learning rate falls to 0: after the Noam schedule, whose peak would be 0.0125 here, 28 % of the rows have a mistake.
"""

import dataclasses

from ml_collections import ConfigDict

from bigjax.config import CheckpointConfig, Config, DataConfig, TrainConfig
from bigjax.config.strict import to_config_dict

from . import transformer


def get_config() -> ConfigDict:
    """Return the config."""
    return to_config_dict(
        Config(
            model=transformer.model(64, 128, 4, dropout=0.0, vocab_size=260, num_layers=2),
            data=DataConfig(sources=("copy:10:8",), seq_len=10, target_len=10),
            train=TrainConfig(steps=1000, global_batch_size=64, objective="seq2seq", label_smoothing=0.1),
            optim=dataclasses.replace(transformer.noam(64, 100, 1000), lr=2e-3, schedule="cosine", end_lr_ratio=0.0),
            checkpoint=CheckpointConfig(every_steps=500),
        )
    )
