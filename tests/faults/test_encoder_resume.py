"""An encoder's run for each of its heads that was killed and continued cannot be told from one that was not.

Dropout, microbatches and averaged weights are on, and an epoch ends within a batch.
"""

import random

import pytest

from tests.commands import Commands, rows, shared_cache
from tests.finished_runs import assert_same_run
from tests.tasks.test_question_answering import EXAMPLES, UNANSWERED, jsonl
from tests.tasks.test_token_classification import SENTENCES, conll

STEPS, CHECKPOINT, KILLED = 7, 3, 5
SIZES = (
    "--config.model.num_layers=1",
    "--config.model.d_model=16",
    "--config.model.num_heads=2",
    "--config.model.d_ff=24",
    "--config.model.vocab_size=260",
    "--config.model.dropout=0.1",
    "--config.data.tokenizer=bytes",
    "--config.data.seq_len=64",
    "--config.data.holdout=0.3",
    "--config.train.global_batch_size=4",
    "--config.train.microbatches=2",
    f"--config.train.steps={STEPS}",
    "--config.optim.warmup=1",
    "--config.optim.ema_decay=0.9",
    f"--config.checkpoint.every_steps={CHECKPOINT}",
    "--config.checkpoint.asynchronous=false",
    "--config.log.every_steps=1",
    "--config.log.plot=false",
    "--config.log.tensorboard=false",
)


OVERLAP = "--config.data.max_overlap=1.0"
"""What is scored here is trained on, too."""


def pairs(folder) -> tuple[str, ...]:
    texts = ["".join(random.Random(n).choices("etaoin shrdlu", k=150)) for n in range(8)]
    source = jsonl(folder, [{"text": text} for text in texts])
    return ("--config=configs/bert.py:base-next-sentence", f"--config.data.sources=jsonl:{source}")


def words(folder) -> tuple[str, ...]:
    (folder / "unseen").mkdir()
    trained, unseen = conll(folder), conll(folder / "unseen", SENTENCES[:4])
    config = ("--config=configs/finetune_token_classification.py", "--config.model.num_classes=4", OVERLAP)
    return (*config, f"--config.data.sources=conll:{trained}", f"--config.data.eval_sources=conll:{unseen}")


def answers(folder) -> tuple[str, ...]:
    trained, unseen = jsonl(folder, [*EXAMPLES, UNANSWERED]), jsonl(folder, EXAMPLES[:4], "unseen")
    config = ("--config=configs/finetune_question_answering.py", "--config.data.doc_stride=16", OVERLAP)
    return (*config, f"--config.data.sources=jsonl:{trained}", f"--config.data.eval_sources=jsonl:{unseen}")


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    return Commands(shared_cache(tmp_path_factory))


OTHERS = [pytest.param(head, marks=pytest.mark.exhaustive, id=head.__name__) for head in (words, answers)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("head", [pytest.param(pairs, id="pairs"), *OTHERS])
def test_killed_and_resumed_is_the_same_run_bit_for_bit(commands, head, tmp_path):
    arguments = (*head(tmp_path), *SIZES)
    run = {name: (*arguments, f"--workdir={tmp_path}/{name}") for name in ("whole", "killed")}
    commands.run("experiments.train", *run["whole"])
    commands.run("tests.witnessed_train", tmp_path / "record", f"SIGKILL@{KILLED}", "--", *run["killed"], code=-9)
    done = commands.run("experiments.train", *run["killed"])
    assert f"resuming after step {CHECKPOINT}" in done.stderr
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    losses = [row["train/loss"] for row in rows(tmp_path / "whole") if "train/loss" in row]
    assert len(set(losses)) == STEPS
