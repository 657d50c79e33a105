"""Which words of a sentence are names, and of what?

    python -m experiments.train --config=configs/finetune_token_classification.py \
        --config.data.sources=conll:train.conll --config.data.eval_sources=conll:test.conll
    python -m experiments.evaluate --workdir=runs/finetune_token_classification

A file has a word and its tag on each line and a blank line after each sentence, as CoNLL-2003's, whose nine tags are
`model.num_classes`; or `jsonl:GLOB` has the lists `data.text_key` and `data.label_key`. A word is predicted at its
first token. Batch, learning rate and length of the run are of the range of Devlin et al. 2019, appendix A.3: 16
sentences, 5e-5, and about 3 epochs of CoNLL-2003's 14,041. The model is MiniLM's shape; start from trained weights of
it with --config.init_from.
"""

import dataclasses

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, OptimConfig, TrainConfig, strict

from . import bert


def get_config() -> ConfigDict:
    """Return the config."""
    model = bert.model(*bert.SHAPES["minilm"])
    return strict.to_config_dict(
        Config(
            model=dataclasses.replace(model, head="token_classification", num_classes=9),
            data=DataConfig(
                sources=("conll:train.conll",),
                eval_sources=("conll:test.conll",),
                tokenizer="bpe:16384",
                seq_len=128,
                document_mask=False,
            ),
            train=TrainConfig(steps=2600, global_batch_size=16, objective="token_classification"),
            optim=OptimConfig(lr=5e-5, schedule="linear", warmup=0.1, end_lr_ratio=0.0, weight_decay=0.01, b2=0.999),
        )
    )
