"""Does a small BERT learn Shakespeare's English from masked tokens?

    python -m experiments.train --config=configs/mlm_shakespeare.py

A 4-layer encoder of width 192 on byte-level BPE of 4,096 tokens. After 800 steps, 2.1 epochs and about 3.5 minutes on
two CPU cores: 5.93 nats for each masked token of the held-out works, 16.4 % of them right. It has only begun to learn.
The run is what `configs/finetune_classification.py` starts from.
"""

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig, strict

MODEL = ModelConfig(
    family="encoder",
    vocab_size=4352,  # the tokens, those that stand for no text, and room to be divided
    num_layers=4,
    d_model=192,
    num_heads=4,
    max_seq_len=256,
    activation="gelu",
    attention="xla",
    layers="unroll",
)


def get_config() -> ConfigDict:
    """Return the config."""
    return strict.to_config_dict(
        Config(
            model=MODEL,
            data=DataConfig(tokenizer="bpe:4096", seq_len=128, document_mask=False),
            train=TrainConfig(steps=800, global_batch_size=32, objective="masked_lm", eval_batches=0),
            optim=OptimConfig(lr=1e-3, schedule="cosine", warmup=0.1, weight_decay=0.01, b2=0.98),
            log=LogConfig(every_steps=20),
        )
    )
