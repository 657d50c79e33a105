"""A batch with nothing to predict has no loss and no gradient, and is counted; data with none at all are refused."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import models
from bigjax.config import Config, DataConfig, GuardConfig, LogConfig, ModelConfig, OptimConfig, TrainConfig
from bigjax.data import DataError
from bigjax.errors import UserError
from bigjax.evaluate.scoring import scores_of
from bigjax.params import names
from bigjax.tasks import random_batch
from bigjax.train import divergence, step
from bigjax.train import optimizers as optim
from experiments import train
from tests.commands import read, rows
from tests.parity import quick_jit

SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "num_layers": 1,
    "d_model": 16,
    "num_heads": 2,
    "max_seq_len": 16,
    "positions": "sinusoidal",
}
QUIET = LogConfig(every_steps=1, tensorboard=False, plot=False)
ENCODER = {"family": "encoder", "token_types": 2}
OBJECTIVES: dict[str, tuple[Any, Any, Any]] = {
    "causal_lm": ({}, {}, {}),
    "causal_lm by chunks": ({}, {}, {"loss_chunks": 4, "z_loss": 0.1, "label_smoothing": 0.1}),
    "causal_lm in microbatches": ({}, {}, {"microbatches": 2}),
    "masked_lm_next_sentence": ({**ENCODER, "head": "lm_next_sentence"}, {}, {}),
    "question_answering": ({**ENCODER, "head": "question_answering"}, {}, {}),
    "seq2seq": ({"family": "encdec"}, {"target_len": 16}, {}),
}


def config(case: str) -> Config:
    model, data, train = OBJECTIVES[case]
    objective: Any = case.partition(" ")[0]
    return Config(
        ModelConfig(**SMALL, **model),
        DataConfig(seq_len=16, doc_stride=4, **data),
        TrainConfig(objective=objective, global_batch_size=4, steps=2, **train),
        OptimConfig(name="sgd", momentum=0.0, weight_decay=0.0, schedule="constant"),
    )


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", OBJECTIVES)
def test_a_step_without_targets_changes_nothing(case):
    cfg = config(case)
    model = models.build(cfg.model)
    tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
    batch = random_batch(cfg)
    batch |= {name: np.zeros_like(batch[name]) for name in ("weights", "next_weights") if name in batch}
    state = step.init_state(cfg, model, tx)
    after, found = quick_jit(step.make_train_step(cfg, model, tx))(state, batch)
    assert float(found["loss"]) == float(found["grad_norm"]) == float(found["tokens"]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    for name, w in names(after.params).items():
        np.testing.assert_array_equal(w, names(state.params)[name])


def test_a_step_that_is_not_counted_leaves_the_window_as_it_was():
    cfg = GuardConfig(on_spike="skip", window=3, threshold=5.0)
    watch = divergence.init(cfg)
    for loss in (4.0, 4.1, 3.9):
        watch, _ = divergence.judge(cfg, watch, jnp.float32(loss), jnp.float32(1 + loss / 10))
    after, verdict = divergence.judge(cfg, watch, jnp.zeros(()), jnp.zeros(()), jnp.asarray(False))
    assert after is not None and watch is not None
    np.testing.assert_array_equal(after.recent, watch.recent)
    assert not verdict["dropped"]


def test_scores_leave_out_what_nothing_was_counted_of():
    scores = scores_of({"nll": (jnp.float32(8), jnp.float32(4)), "nll_per_byte": (jnp.float32(0), jnp.int32(0))})
    assert (scores["loss"], scores["tokens"]) == (2.0, 4.0)
    assert "bits_per_byte" not in scores
    for nothing in ({}, {"nll": (jnp.float32(0), jnp.float32(0))}):
        with pytest.raises(UserError, match="nothing to evaluate: the batches hold no token"):
            scores_of(nothing)


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def run_on(folder, texts, held_out=(), objective: Any = "causal_lm") -> tuple[Config, Path]:
    """Return a run of 9 steps on short documents, and its folder."""
    data: dict[str, Any] = {}
    for name, side in {"sources": texts, "eval_sources": held_out}.items():
        if side:
            write(folder / f"{name}.jsonl", side)
            data[name] = (f"jsonl:{folder}/{name}.jsonl",)
    encdec = objective != "causal_lm"
    cfg = Config(
        ModelConfig(**SMALL, family="encdec" if encdec else "decoder"),
        DataConfig(**data, seq_len=4, target_len=8 * encdec, holdout=0.0, cache_dir=str(folder / "cache")),
        TrainConfig(objective=objective, global_batch_size=8, steps=9),
        log=QUIET,
    )
    return cfg, folder / "run"


@pytest.mark.exhaustive
def test_short_documents_among_others_are_counted(call_command, tmp_path):
    cfg, folder = run_on(tmp_path, ["abcdefgh", *"abcdefghijklmnopqrstuvwx" * 16])
    assert train.run(cfg, folder) == 0
    result, found = read(folder / "result.json"), rows(folder)
    empty = [row["step"] for row in found if row.get("train/empty_batches")]
    assert result["empty_batches"] == len(empty) > 0
    assert [row["step"] for row in found if "train/loss" in row] == sorted({*range(1, 10)} - {*empty})
    assert np.isfinite(result["train_loss"])
    write(tmp_path / "none.jsonl", "abcdefghi")
    status, out, said = call_command(
        "experiments.evaluate", f"--workdir={folder}", f"--sources=jsonl:{tmp_path}/none.jsonl"
    )
    assert (status, out) == (2, "") and "error: nothing to evaluate" in said


@pytest.mark.parametrize("objective", ["causal_lm", "prefix_lm", "span_corruption"])
def test_data_with_nothing_to_predict_are_refused(tmp_path, objective):
    cfg, folder = run_on(tmp_path, "abcdefgh" * 8, objective=objective)
    with pytest.raises(DataError, match=r"there is nothing to predict in 'jsonl:[^ ]+':"):
        train.run(cfg, folder)
    cfg, folder = run_on(tmp_path, [f"{number} bottles" for number in range(10, 30)], "abcdefgh", objective=objective)
    with pytest.raises(DataError, match=r"there is nothing to predict in what is held out of 'jsonl:"):
        train.run(cfg, folder)
    assert not folder.exists()
