"""Steps of training equal those of PyTorch on the same GPT-2 and batch: loss, gradients, clipping, optimizer, schedule.

Tolerances. Both sides compute the same gradient up to float32 rounding; `GRADIENT_TOLERANCE` bounds the difference of
any entry and is checked on its own. An optimizer turns a difference d of the gradient into at most lr * d (SGD; with
momentum up to 1 / (1 - momentum) times that), or lr * d / eps (Adam, whose step g / (sqrt(v) + eps) has slope 1 / eps
at zero); eps is 1e-3 here so that noise in gradients that are zero in exact arithmetic stays noise. Three steps add
up; a factor of 2 covers what the first differences do to later gradients. Every parameter that matters moves by at
least 100 times as much.
"""

import functools
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with PyTorch's optimizers needs PyTorch")

from transformers import get_cosine_with_min_lr_schedule_with_warmup  # noqa: E402

from bigjax import config, models, sharding  # noqa: E402
from bigjax.config import Config, DataConfig, LrMultipliers, ModelConfig, OptimConfig, TrainConfig  # noqa: E402
from bigjax.params import names  # noqa: E402
from bigjax.train import optimizers as optim  # noqa: E402
from bigjax.train import step  # noqa: E402
from tests.conftest import mesh_of  # noqa: E402
from tests.parity import peers, quick_jit  # noqa: E402

STEPS, ROWS, SEQ_LEN = 3, 4, 9
GRADIENT_TOLERANCE = 1e-6
MODEL = ModelConfig(vocab_size=37, num_layers=2, d_model=24, num_heads=3, max_seq_len=12)
BASE = Config(
    model=MODEL,
    data=DataConfig(seq_len=SEQ_LEN),
    train=TrainConfig(global_batch_size=ROWS, steps=STEPS),
    optim=OptimConfig(lr=1e-2, schedule="constant", weight_decay=0.3, b1=0.8, b2=0.9, eps=1e-3, grad_clip=None),
)


def make_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Return a batch with weights 0, 1 and between, unevenly spread over the rows."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, MODEL.vocab_size, (ROWS, SEQ_LEN + 1)).astype(np.int32)
    weights = rng.choice([0.0, 0.5, 1.0], (ROWS, SEQ_LEN)).astype(np.float32)
    weights[0], weights[1, :-1] = 1.0, 0.0
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


@functools.cache
def train(cfg: Config, steps: int = STEPS) -> tuple[list[step.TrainState], list[dict[str, Any]]]:
    """Train on one device from PyTorch's weights; return states, the initial one first, and each step's metrics."""
    _, mesh = mesh_of(1)
    with jax.set_mesh(mesh):
        model = models.build(cfg.model)
        layout = sharding.layout(cfg.mesh, mesh, model.specs)
        tx = optim.build(cfg.optim, model.specs, cfg.train.steps)
        whole = jax.NamedSharding(mesh, jax.P())
        params = jax.device_put(peers.weights(peers.build(MODEL), MODEL), whole)
        ema = None if cfg.optim.ema_decay is None else params
        state = step.TrainState(jax.device_put(np.int32(0), whole), params, quick_jit(tx.init)(params), ema)
        batch = sharding.put_batch(make_batch(), mesh, ROWS)
        train_step = quick_jit(step.make_train_step(cfg, model, tx, layout))
        states, metrics = [state], []
        for _ in range(steps):
            state, measured = train_step(state, batch)
            states.append(state)
            metrics.append(jax.tree.map(float, measured))
    return states, metrics


def torch_loss(model: Any) -> Any:
    batch = {name: torch.from_numpy(x) for name, x in make_batch().items()}
    logits = model(batch["tokens"].long(), use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["targets"].long(), reduction="none")
    return (losses * batch["weights"]).sum() / batch["weights"].sum()


def kind_of(name: str) -> str:
    if ".wte." in name or ".wpe." in name:
        return "embedding"
    if ".ln_" in name:
        return "norm" if name.endswith("weight") else "bias"
    return "matrix" if name.endswith("weight") else "bias"


def torch_train(optimizer: Any, cfg: OptimConfig, model: Any) -> tuple[list, list, list]:
    """Train `model` in place with PyTorch; return its parameters, losses and gradient norms."""
    groups = []
    for name, w in model.named_parameters():
        rate = cfg.lr * getattr(cfg.lr_multipliers, kind_of(name))
        groups.append({"params": [w], "lr": rate, "weight_decay": cfg.weight_decay if w.ndim > 1 else 0.0})
    optimizer = optimizer(groups)
    scheduler = None
    if cfg.schedule == "cosine":
        scheduler = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 0, STEPS - 1, min_lr_rate=cfg.end_lr_ratio)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch_loss(model)
        loss.backward()
        limit = torch.inf if cfg.grad_clip is None else cfg.grad_clip
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit)))
        losses.append(loss.item())
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return names(peers.weights(model, MODEL)), losses, norms


GRADIENT = config.replace(BASE, optim={"name": "sgd", "lr": 1.0, "weight_decay": 0.0, "momentum": 0.0})
"""One step moves the parameters by the gradient itself."""


def test_loss_and_gradients_weigh_tokens():
    hf = peers.build(MODEL)
    states, (metrics,) = train(GRADIENT, 1)
    loss = torch_loss(hf)
    loss.backward()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert metrics["nll"] == metrics["loss"] and metrics["z_loss"] == 0
    assert metrics["tokens"] == make_batch()["weights"].sum()
    before, after = (names(state.params) for state in states)
    for name, grad in names(peers.gradients(hf, MODEL)).items():
        rounding = 2.0**-23 * np.abs(after[name]).max()  # of the subtraction
        np.testing.assert_allclose(before[name] - after[name], grad, rtol=0, atol=GRADIENT_TOLERANCE + rounding)
        assert metrics["grad_norms"][name] == pytest.approx(np.linalg.norm(grad), rel=1e-5, abs=1e-6), name


BETAS = {"betas": (0.8, 0.9), "eps": 1e-3}
MULTIPLIERS = LrMultipliers(embedding=0.5, head=3.0, matrix=2.0, norm=0.0, bias=0.25)
OPTIMIZERS: dict[str, tuple[dict, Any]] = {
    "adamw": ({"name": "adamw", "ema_decay": 0.7}, lambda groups: torch.optim.AdamW(groups, **BETAS)),
    "adam with L2 in the gradient": ({"name": "adam"}, lambda groups: torch.optim.Adam(groups, **BETAS)),
    "sgd with momentum": ({"name": "sgd", "lr": 0.1}, lambda groups: torch.optim.SGD(groups, momentum=0.9)),
    "nesterov, clipped at every step, cosine": (
        {"name": "sgd", "lr": 0.1, "nesterov": True, "grad_clip": 0.3, "schedule": "cosine", "end_lr_ratio": 0.2},
        lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    ),
    "adamw, clipped, a learning rate for each kind": (
        {"name": "adamw", "grad_clip": 0.3, "lr_multipliers": MULTIPLIERS},
        lambda groups: torch.optim.AdamW(groups, **BETAS),
    ),
}


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_three_steps_equal_pytorch(case):
    fields, optimizer = OPTIMIZERS[case]
    cfg = config.replace(BASE, optim=fields)
    states, metrics = train(cfg)
    expected, losses, norms = torch_train(optimizer, cfg.optim, peers.build(MODEL))
    np.testing.assert_allclose([m["loss"] for m in metrics], losses, rtol=1e-5)
    np.testing.assert_allclose([m["grad_norm"] for m in metrics], norms, rtol=1e-4)
    if cfg.optim.grad_clip is not None:
        assert min(norms) > 2 * cfg.optim.grad_clip
    slope = 1 / cfg.optim.eps if cfg.optim.name.startswith("adam") else 2.0  # 6 = 1 + 1.9 + 2.71 steps of momentum
    before, after = names(states[0].params), names(states[-1].params)
    for name, spec in names(models.build(MODEL).specs).items():
        rate = cfg.optim.lr * getattr(cfg.optim.lr_multipliers, spec.kind)
        tolerance = 2 * STEPS * rate * GRADIENT_TOLERANCE * slope + (2.0**-22 if rate else 0.0)
        np.testing.assert_allclose(after[name], expected[name], rtol=0, atol=tolerance, err_msg=name)
        if not name.endswith("k_bias"):  # softmax cancels the bias of the keys: no gradient
            assert np.abs(after[name] - before[name]).max() >= 100 * tolerance, name


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_with_uneven_weights_change_nothing(microbatches):
    """One row has one weighted token and another nine, so a mean of means would be far off."""
    whole, whole_metrics = train(GRADIENT, 1)
    split, metrics = train(config.replace(GRADIENT, train={"microbatches": microbatches}), 1)
    for name, value in names(whole_metrics[0]).items():
        assert names(metrics[0])[name] == pytest.approx(value, rel=1e-5, abs=GRADIENT_TOLERANCE), name
    for name, w in names(split[1].params).items():
        np.testing.assert_allclose(w, names(whole[1].params)[name], rtol=0, atol=GRADIENT_TOLERANCE, err_msg=name)


def test_ema_is_the_closed_form():
    """After n steps it is `d^n p_0 + (1 - d) * sum of d^(n-k) p_k`."""
    decay = 0.7
    states, _ = train(config.replace(BASE, optim={"name": "adamw", "ema_decay": decay}))
    trail = [names(state.params) for state in states]
    for name, ema in names(states[-1].ema).items():
        steps = [(1 - decay) * decay ** (STEPS - k) * np.float64(trail[k][name]) for k in range(1, STEPS + 1)]
        expected = decay**STEPS * np.float64(trail[0][name]) + sum(steps)
        np.testing.assert_allclose(ema, expected, rtol=1e-6, atol=2.0**-22)
    assert train(GRADIENT, 1)[0][-1].ema is None
