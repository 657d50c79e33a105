"""Where in a text does the answer to a question stand?

    python -m experiments.train --config=configs/finetune_question_answering.py \
        --config.data.sources=jsonl:train.jsonl --config.data.eval_sources=jsonl:dev.jsonl
    python -m experiments.evaluate --workdir=runs/finetune_question_answering

A line of the files has `context`, `question`, `answer` and `answer_start` (in characters; several right answers are
lists of both, and empty lists or a true `is_impossible` are no answer), as in SQuAD (Rajpurkar et al. 2016, 2018). A
text longer than a row is read in pieces, 128 tokens apart, and the best answer of all of them is taken. Rows of 384, 32
a batch, a learning rate of 5e-5 and about 3 epochs of SQuAD's 87,599 questions are those of Devlin et al. 2019, section
4.2. The model is MiniLM's shape; start from trained weights of it with --config.init_from.
"""

import dataclasses

from ml_collections import ConfigDict

from bigjax.config import Config, DataConfig, OptimConfig, TrainConfig, strict

from . import bert


def get_config() -> ConfigDict:
    """Return the config."""
    return strict.to_config_dict(
        Config(
            model=dataclasses.replace(bert.model(*bert.SHAPES["minilm"]), head="question_answering"),
            data=DataConfig(
                sources=("jsonl:train.jsonl",),
                eval_sources=("jsonl:dev.jsonl",),
                text_key="context",
                tokenizer="bpe:16384",
                seq_len=384,
                document_mask=False,
            ),
            train=TrainConfig(steps=8200, global_batch_size=32, objective="question_answering"),
            optim=OptimConfig(lr=5e-5, schedule="linear", warmup=0.1, end_lr_ratio=0.0, weight_decay=0.01, b2=0.999),
        )
    )
