"""Every config, shrunk, learns: on one batch again and again, the loss falls below what knows no context."""

import jax
import numpy as np
import pytest

from bigjax import config, params
from bigjax.config import Config
from bigjax.models import rnn
from bigjax.tasks import named_task
from bigjax.train import step
from tests.on_meshes import by_family, initial, program, random_batch, shrunk

CONFIGS = shrunk()


def learnable(cfg: Config) -> Config:
    """Return a run that learns in so few steps: plain SGD takes longer, and so does a model with half of it dropped."""
    if cfg.optim.name != "sgd":
        return cfg
    drops = {f"rnn.{name}": None for name in rnn.RATES} if cfg.model.family == "rnn" else {}
    optimizer = {"name": "adam", "lr": 0.02, "grad_clip": 1.0, "schedule": "constant", "decay": 0}
    return config.replace(cfg, model={"dropout": 0.0, **drops}, optim=optimizer)


def label_entropy(targets: np.ndarray, weights: np.ndarray) -> float:
    """Return the loss in nats of the best prediction that is the same for every token."""
    counts = np.bincount(targets.ravel(), weights.ravel())
    shares = counts[counts > 0] / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def chances(cfg: Config, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return among how many outcomes whoever knows nothing has to choose: classes, places of a row, or tokens."""
    if cfg.train.objective == "question_answering":
        return batch["segments"].sum(axis=1)
    whether_next = 2 if cfg.train.objective == "masked_lm_next_sentence" else 1
    return np.array(whether_next * (cfg.model.num_classes or cfg.model.vocab_size))


@pytest.mark.parametrize("name", by_family(CONFIGS))
def test_every_config_learns_a_batch(name):
    cfg = learnable(CONFIGS[name])
    run, batch = program(cfg), random_batch(cfg)
    with jax.set_mesh(run.mesh):
        start = jax.tree.unflatten(jax.tree.structure(run.model.specs), list(initial(cfg).values()))
        carried = step.fresh(cfg, run.model, run.layout)
        state = step.TrainState(np.zeros((), np.int32), start, jax.jit(run.tx.init)(start), carried=carried)
        # Where the step will leave it, or a second program would be compiled for the second step.
        lies = step.abstract_state(cfg, run.model, run.tx, run.layout, run.mesh)
        state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, lies))
        placed, losses = run.place(cfg), []
        # Adafactor moves a parameter by a share of its size, a hundredth here.
        for _ in range(cfg.train.steps * (5 if cfg.optim.name == "adafactor" else 1)):
            state, metrics = run.step(state, placed)
            losses.append(float(metrics["loss"]))
    assert int(state.step) == len(losses)
    for path, value in params.names(jax.device_get(state.params)).items():
        assert np.any(value != initial(cfg)[path]), f"{path} never moved"
    if named_task(cfg).unit == "rows":
        weights, targets = batch["weights"], batch["targets"]
        assert losses[-1] < np.average((targets - np.average(targets, weights=weights)) ** 2, weights=weights)
        return
    # Small initial weights predict every token almost alike. Tied ones give the input token itself a logit of up to
    # init_std * d_model = 2.6, which adds exp(2.6) / 64 = 0.2; the spread of the others, 0.02 * sqrt(128), adds 0.03.
    # T5's logits start with a variance of 1, which adds half of that; its tied table gives the input token itself one
    # of up to sqrt(d_model).
    spread = 0.5 if cfg.model.init == "fan_in" else 0.0
    expected = np.log(chances(cfg, batch)).mean() + spread
    most = max(expected + 0.5, cfg.model.d_model**0.5 if getattr(cfg.model.own, "scale_logits", False) else 0)
    assert expected - 0.5 < losses[0] < most
    assert losses[-1] < label_entropy(batch["targets"], batch["weights"])
