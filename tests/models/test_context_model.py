"""A whole model whose rows several devices share: applied, scored and written with as on one device."""

from functools import cache

import jax
import numpy as np
import pytest

from bigjax import models
from bigjax.config import Config, DataConfig, ModelConfig, TrainConfig
from bigjax.evaluate.generation import generate
from bigjax.sharding import ShardingError
from bigjax.tasks import random_batch
from bigjax.train import functions
from tests.conftest import mesh_of

CFG = Config(
    model=ModelConfig(
        vocab_size=32, num_layers=1, d_model=16, num_heads=4, num_kv_heads=2, max_seq_len=32, layer_windows=(9,)
    ),
    data=DataConfig(seq_len=32),
    train=TrainConfig(global_batch_size=4),
)
MODEL = models.build(CFG.model)
BATCH = random_batch(CFG)
TOLERANCE = float(np.finfo(np.float32).eps) * 2**5
"""Of the norm of logits that are sums of under 2^10 terms in float32."""


def mesh(context: int):
    return mesh_of(2 * context, data=2, context=context)[1]


@cache
def logits(context: int, changed: int | None = None) -> np.ndarray:
    """Return the logits of packed documents, with one token of the first row another where `changed` says so."""
    tokens = BATCH["tokens"].copy()
    if changed is not None:
        tokens[0, changed] = (tokens[0, changed] + 1) % CFG.model.vocab_size
    with jax.set_mesh(mesh(context)):
        params = MODEL.init(jax.random.key(0))
        apply = jax.jit(lambda p, t: MODEL.apply(p, t, positions_BS=BATCH["positions"], segments_BS=BATCH["segments"]))
        return np.asarray(apply(params, tokens))


def test_a_model_on_the_mesh_that_is_set():
    right = logits(1)
    assert np.linalg.norm(logits(4) - right) <= TOLERANCE * np.linalg.norm(right)


def test_rows_that_cannot_be_split_are_refused():
    with jax.set_mesh(mesh(4)), pytest.raises(ShardingError, match=r"a row=30 is not divisible by mesh\.context=4"):
        MODEL.apply(MODEL.init(jax.random.key(0)), BATCH["tokens"][:, :30])


def test_a_token_changes_nothing_in_other_documents():
    segments = BATCH["segments"][0]
    place = int(np.flatnonzero(segments == 1)[0])
    changed = np.abs(logits(4, place) - logits(4)).max(axis=-1) > 0
    assert changed[0][segments == 1].all() or (segments == 1).sum() > CFG.model.windows[0]
    assert not changed[0][segments != 1].any() and not changed[1:].any()


def test_the_loss_of_a_batch():
    losses = []
    for context in (1, 4):
        with jax.set_mesh(mesh(context)):
            losses.append(float(jax.jit(lambda p: functions.loss(p, BATCH, CFG))(MODEL.init(jax.random.key(0)))))
    assert losses[1] == pytest.approx(losses[0], rel=TOLERANCE)


def test_texts_of_any_length_are_written():
    written = []
    for context in (1, 4):
        with jax.set_mesh(mesh(context)):
            params = MODEL.init(jax.random.key(0))
            written.append(generate(MODEL, params, [[1, 2, 3], [4, 5, 6, 7, 8]], max_new_tokens=6, temperature=0.0))
    assert written[0] == written[1]
