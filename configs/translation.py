"""How well does a small Transformer translate, from a table of two columns?

    python -m experiments.train --config=configs/translation.py --config.data.sources='tsv:pairs.tsv' \
        --config.data.text_key=en --config.data.target_key=de
    python -m experiments.evaluate --workdir=runs/translation --tasks=bleu,chrf
    python -m experiments.generate --workdir=runs/translation --prompt='Good morning.' --beams=4 --length_penalty=0.6

The first line of the table names its columns, by default `text` and `target`. 3 + 3 layers of 256 features read bytes,
which suits any pair of languages and no more than some 100,000 pairs; with more, take `configs/transformer.py`.
"""

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, TrainConfig
from bigjax.config.strict import to_config_dict

from . import transformer


def get_config() -> ConfigDict:
    """Return the config."""
    return to_config_dict(
        Config(
            model=transformer.model(256, 1024, 4, dropout=0.1, vocab_size=260, num_layers=3),
            data=DataConfig(sources=("tsv:pairs.tsv",), seq_len=128, target_len=128),
            train=TrainConfig(steps=5000, global_batch_size=32, objective="seq2seq", label_smoothing=0.1),
            optim=transformer.noam(256, 1000, 5000),
        )
    )
