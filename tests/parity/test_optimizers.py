"""Lion, Muon and Adafactor equal independent implementations on given gradients; schedules equal their papers.

The gradients are drawn, not computed by a model, so that no rounding in them decides a sign or is orthogonalised.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigjax import models
from bigjax.config import ModelConfig, OptimConfig, lengths
from bigjax.params import ParamSpec, names
from bigjax.train import optimizers as optim

ROUNDING = 2.0**-24
"""Relative rounding of a float32."""

LLAMA = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": "none", "tie_embeddings": False}
MODEL = ModelConfig(vocab_size=23, num_layers=2, d_model=24, num_heads=4, num_kv_heads=2, head_dim=5, d_ff=40, **LLAMA)
BASE = OptimConfig(schedule="constant", lr=0.01, muon_lr=0.03, weight_decay=0.3, grad_clip=None, b1=0.9, b2=0.99)


def draw(specs: Any, seed: int, scale: float = 1.0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda spec: (scale * rng.standard_normal(spec.shape)).astype(np.float32), specs)


def update(cfg: OptimConfig, model: ModelConfig, steps: int) -> dict[str, np.ndarray]:
    """Return the parameters after `steps` updates from `draw(specs, 0)` by the gradients `draw(specs, 1)`, ..."""
    specs = models.build(model).specs
    tx = optim.build(cfg, specs, 100)

    @jax.jit
    def run(params, grads):
        state = tx.init(params)
        for grad in grads:
            updates, state = tx.update(grad, state, params)
            params = jax.tree.map(jnp.add, params, updates)
        return params

    grads = [draw(specs, 1 + i) for i in range(steps)]
    return {name: np.asarray(w) for name, w in names(run(draw(specs, 0, 0.5), grads)).items()}


def as_matrices(spec: ParamSpec, w: np.ndarray) -> list[np.ndarray]:
    """Split a stack into layers and flatten each matrix to `(out, in)`, the way torch.nn.Linear stores it."""
    layers = list(w) if spec.stacked else [w]
    if spec.kind != "matrix":
        return layers
    axes = spec.axes[1:] if spec.stacked else spec.axes
    rows = [i for i, axis in enumerate(axes) if axis in spec.contracts]
    columns = [i for i in range(len(axes)) if i not in rows]
    fan_in = math.prod(layers[0].shape[i] for i in rows)
    return [layer.transpose(*columns, *rows).reshape(-1, fan_in) for layer in layers]


def torch_update(groups_of: Any, model: ModelConfig, steps: int) -> dict[str, list[np.ndarray]]:
    """Return PyTorch's parameters, each layer's matrix on its own, after the same updates as `update` makes."""
    import torch

    specs = names(models.build(model).specs)

    def split(seed: int, scale: float = 1.0) -> dict[str, list[np.ndarray]]:
        drawn = names(draw(models.build(model).specs, seed, scale))
        return {name: as_matrices(spec, drawn[name]) for name, spec in specs.items()}

    tensors = {
        name: [torch.tensor(np.ascontiguousarray(w), requires_grad=True) for w in layers]
        for name, layers in split(0, 0.5).items()
    }
    optimizers = groups_of(torch, specs, tensors)
    for i in range(steps):
        for name, layers in split(1 + i).items():
            for w, grad in zip(tensors[name], layers, strict=True):
                w.grad = torch.tensor(np.ascontiguousarray(grad))
        for optimizer in optimizers:
            optimizer.step()
    return {name: [w.detach().numpy() for w in layers] for name, layers in tensors.items()}


def assert_equal(actual: dict, expected: dict, model: ModelConfig, tolerance: float, only: Any = None) -> None:
    for name, spec in names(models.build(model).specs).items():
        if only is None or only(name, spec):
            for ours, theirs in zip(as_matrices(spec, actual[name]), expected[name], strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=name)


def test_lion_is_algorithm_2_of_its_paper():
    """Chen et al. 2023, algorithm 2, in float64; decay spares norms."""
    specs, steps = models.build(MODEL).specs, 4
    actual = update(OptimConfig(**vars(BASE) | {"name": "lion"}), MODEL, steps)
    for name, spec in names(specs).items():
        theta, m = np.float64(names(draw(specs, 0, 0.5))[name]), 0.0
        decay = 0.0 if spec.kind == "norm" else BASE.weight_decay
        for i in range(steps):
            g = np.float64(names(draw(specs, 1 + i))[name])
            c = BASE.b1 * m + (1 - BASE.b1) * g
            theta = theta - BASE.lr * (np.sign(c) + decay * theta)
            m = BASE.b2 * m + (1 - BASE.b2) * g
        np.testing.assert_allclose(actual[name], theta, rtol=0, atol=4 * steps * ROUNDING * np.abs(theta).max())


@pytest.mark.parametrize("steps", [1, 3])
def test_muon_equals_pytorch(steps, monkeypatch):
    """torch.optim.Muon on each layer's matrix, AdamW on the rest.

    PyTorch orthogonalises in bfloat16, here kept in float32 to compare closely. The 5 iterations multiply a small
    singular value, and the rounding of it, by up to 3.4445^5 = 485; a sum over 40 terms rounds to some 7 units.
    """
    torch = pytest.importorskip("torch", reason="parity with PyTorch's optimizers needs PyTorch")
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())

    def optimizers(torch, specs, tensors):
        matrices = [w for name in specs if specs[name].kind == "matrix" for w in tensors[name]]
        rest = [
            {"params": tensors[name], "weight_decay": 0.0 if spec.kind == "norm" else BASE.weight_decay}
            for name, spec in specs.items()
            if spec.kind != "matrix"
        ]
        muon = torch.optim.Muon(matrices, lr=BASE.muon_lr, momentum=BASE.muon_momentum, weight_decay=BASE.weight_decay)
        return muon, torch.optim.AdamW(rest, lr=BASE.lr, betas=(BASE.b1, BASE.b2), eps=BASE.eps)

    actual = update(OptimConfig(**vars(BASE) | {"name": "muon"}), MODEL, steps)
    expected = torch_update(optimizers, MODEL, steps)
    tolerance = steps * BASE.muon_lr * math.sqrt(40 / 10) * 485 * 7 * ROUNDING
    assert_equal(actual, expected, MODEL, tolerance)


def adafactor(torch, specs, tensors):
    groups = [
        {"params": tensors[name], "weight_decay": 0.0 if spec.kind == "norm" else BASE.weight_decay}
        for name, spec in specs.items()
    ]
    return (torch.optim.Adafactor(groups, lr=BASE.lr),)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_adafactor_equals_pytorch(num_layers):
    """Shazeer & Stern 2018, algorithms 4 to 6, each layer's matrix on its own; dimensions of 128 so that it factors.

    A step is at most lr times the largest factor of an update of rms 1, under 6 for drawn normals, and a few dozen
    roundings of it; parameters of size 3 round too.
    """
    pytest.importorskip("torch", reason="parity with PyTorch's optimizers needs PyTorch")
    sizes = {"vocab_size": 131, "d_model": 128, "num_heads": 2, "num_layers": num_layers, "d_ff": 144}
    model = ModelConfig(**LLAMA, **sizes)
    actual = update(OptimConfig(**vars(BASE) | {"name": "adafactor"}), model, 3)
    tolerance = 3 * (32 * ROUNDING * BASE.lr * 6 + 3 * ROUNDING)
    assert_equal(actual, torch_update(adafactor, model, 3), model, tolerance)


def test_adafactor_factors_the_projections_of_attention():
    model = ModelConfig(**LLAMA, vocab_size=131, d_model=128, num_heads=2, num_layers=1, d_ff=144)
    specs = models.build(model).specs
    state = optim.build(OptimConfig(name="adafactor"), specs, 10).init(draw(specs, 0))
    params, statistics = (sum(x.size for x in jax.tree.leaves(tree)) for tree in (draw(specs, 0), state))
    assert statistics < params / 10


CASES = {
    # Each value is written out from the source that `optim.schedule` names; update 0 is the first of 100.
    "constant": ({}, lambda t: 1.0),
    "constant, warm": ({"warmup": 10}, lambda t: min((t + 1) / 10, 1.0)),
    "linear": ({"schedule": "linear"}, lambda t: 1 - 0.8 * t / 99),
    "linear, warm": (
        {"schedule": "linear", "warmup": 10},
        lambda t: (t + 1) / 10 if t < 10 else 1 - 0.8 * (t - 10) / 89,
    ),
    # Loshchilov & Hutter 2017, equation 5.
    "cosine": ({"schedule": "cosine"}, lambda t: 0.2 + 0.4 * (1 + math.cos(math.pi * t / 99))),
    "cosine, warm": (
        {"schedule": "cosine", "warmup": 10},
        lambda t: (t + 1) / 10 if t < 10 else 0.2 + 0.4 * (1 + math.cos(math.pi * (t - 10) / 89)),
    ),
    "cosine, one update of warm-up": (
        {"schedule": "cosine", "warmup": 1},
        lambda t: 1.0 if t < 1 else 0.2 + 0.4 * (1 + math.cos(math.pi * (t - 1) / 98)),
    ),
    # Hu et al. 2024, section 4: warm up, hold, decay over the last updates.
    "wsd": (
        {"schedule": "wsd", "warmup": 10, "decay": 20},
        lambda t: (t + 1) / 10 if t < 10 else 1 - 0.8 * max(t - 79, 0) / 20,
    ),
    "wsd without a decay": ({"schedule": "wsd"}, lambda t: 1.0),
    "constant, with a decay that it does not read": ({"decay": 0.5}, lambda t: 1.0),
    "wsd, all of it decay": ({"schedule": "wsd", "decay": 99}, lambda t: 1 - 0.8 * t / 99),
    # Vaswani et al. 2017, equation 3, over its own peak d^-0.5 warmup^-0.5.
    "inverse_sqrt": (
        {"schedule": "inverse_sqrt", "warmup": 16},
        lambda t: min((t + 1) ** -0.5, (t + 1) * 16**-1.5) / 16**-0.5,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_schedule(case, monkeypatch):
    """Every value of the run, in units of the peak; float32 computes each in a few roundings."""
    fields, expected = CASES[case]
    rate = optim.schedule(OptimConfig(**{"schedule": "constant", "lr": 0.003, "end_lr_ratio": 0.2} | fields), 100)
    monkeypatch.setattr(optim, "BLOCK", 32)
    looked_up = optim.looked_up(rate)
    wanted = [expected(t) for t in range(100)]
    for values in ([rate(t) for t in range(100)], [looked_up(t) for t in range(100)]):
        np.testing.assert_allclose(np.float64(values) / 0.003, wanted, rtol=16 * 2.0**-23)


def rates(steps: int, **fields) -> np.ndarray:
    """Return all the learning rates of a run in units of the peak."""
    rate = optim.schedule(OptimConfig(**{"lr": 0.003, "end_lr_ratio": 0.2} | fields), steps)
    return np.float64(optim.rates(rate, np.arange(steps))) / 0.003


FALLS = {"wsd": lambda x: x, "linear": lambda x: x, "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2}
"""What is left of the decay where a share x of it is still to come (Loshchilov & Hutter 2017, equation 5)."""


@pytest.mark.parametrize("schedule", FALLS)
@pytest.mark.parametrize("filled", [(3, 7), (0, 10), (9, 1), (0.3, 0.7), (1, 0.9), (0.05, 9)])
def test_warm_up_and_decay_that_fill_the_run_end_where_they_should(schedule, filled):
    """From the peak, at the update after the warm-up if there are two or more, to `end_lr_ratio` at the last."""
    found = rates(10, schedule=schedule, warmup=filled[0], decay=filled[1])
    warmup = {0.3: 3, 0.05: 1}.get(filled[0], filled[0])
    rest = 9 - warmup
    expected = [(t + 1) / warmup for t in range(warmup)]
    expected += [0.2 + 0.8 * FALLS[schedule]((9 - t) / rest) if rest else 0.2 for t in range(warmup, 10)]
    np.testing.assert_allclose(found, expected, rtol=8 * 2.0**-23)
    assert found[-1] == np.float64(np.float32(0.2 * 0.003)) / 0.003


@pytest.mark.parametrize("schedule", FALLS)
def test_a_run_of_one_update_has_the_peak_unless_it_is_a_decay(schedule):
    assert rates(1, schedule=schedule) == rates(1, schedule=schedule, warmup=1) == pytest.approx(1, rel=1e-6)
    assert rates(1, schedule=schedule, decay=0.9) == pytest.approx(1, rel=1e-6)
    assert rates(1, schedule=schedule, decay=1) == pytest.approx(0.2, rel=1e-6)


@pytest.mark.parametrize("warmup", [10_000, 1_000_000])
def test_small_rates_keep_their_digits(warmup):
    """Of the first updates of a long warm-up and the last ones of a long decay to 0, by their closed forms."""
    early = np.float64(optim.rates(optim.schedule(OptimConfig(lr=1.0, warmup=warmup), 2 * warmup), np.arange(5)))
    np.testing.assert_allclose(early, (np.arange(5) + 1) / warmup, rtol=4 * 2.0**-24)
    last = np.arange(warmup - 5, warmup)
    left = (warmup - 1 - last) / (warmup - 1)
    for schedule, fall in (("linear", left), ("wsd", left), ("cosine", np.sin(np.pi / 2 * left) ** 2)):
        cfg = OptimConfig(lr=1.0, schedule=schedule, decay=warmup - 1, end_lr_ratio=0.0)
        late = np.float64(optim.rates(optim.schedule(cfg, warmup), last))
        np.testing.assert_allclose(late, fall, rtol=8 * 2.0**-24)


@pytest.mark.parametrize("schedule", [*FALLS, "constant", "inverse_sqrt"])
def test_a_share_is_so_many_steps(schedule):
    decay = {} if schedule in ("constant", "inverse_sqrt") else {"decay": 40}
    share = {name: length / 200 for name, length in decay.items()}
    shares = rates(200, schedule=schedule, warmup=0.05, **share)
    np.testing.assert_array_equal(shares, rates(200, schedule=schedule, warmup=10, **decay))


@pytest.mark.parametrize("length", ["warmup", "decay"])
@pytest.mark.parametrize(("share", "steps"), [(0.004, 1), (0.0251, 5), (0.995, 199), (1.0, 1), (2.0, 2), (0.0, 0)])
def test_a_share_is_rounded_and_one_step_at_least(length, share, steps):
    assert lengths.lengths(OptimConfig(**{length: share}), 200) == ((steps, 0) if length == "warmup" else (0, steps))


def torch_rates(scheduler_of, steps: int) -> list[float]:
    """Return the learning rates that a scheduler of PyTorch gives an optimizer, in units of the peak."""
    torch = pytest.importorskip("torch", reason="parity with PyTorch's schedules needs PyTorch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, found = scheduler_of(optimizer), []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("warmup", "decay"), [(10, 20), (10, 89), (0, 99), (0, 40)])
def test_wsd_equals_transformers(warmup, decay):
    """After the warm-up, where its decay reaches the end of it at the last update: the stable part takes the rest."""
    transformers = pytest.importorskip("transformers")
    theirs = torch_rates(
        lambda optimizer: transformers.get_wsd_schedule(
            optimizer,
            num_warmup_steps=warmup,
            num_stable_steps=99 - warmup - decay,
            num_decay_steps=decay,
            decay_type="linear",
            min_lr_ratio=0.2,
        ),
        100,
    )
    found = rates(100, schedule="wsd", warmup=warmup, decay=decay)
    np.testing.assert_allclose(found[warmup:], theirs[warmup:], rtol=16 * 2.0**-23)


def test_linear_equals_pytorch():
    """torch.optim.lr_scheduler.LinearLR from 1 to the ratio in as many updates as follow the first."""
    torch = pytest.importorskip("torch", reason="parity with PyTorch's schedules needs PyTorch")
    linear = torch.optim.lr_scheduler.LinearLR
    theirs = torch_rates(lambda optimizer: linear(optimizer, 1.0, 0.2, total_iters=99), 100)
    np.testing.assert_allclose(rates(100, schedule="linear"), theirs, rtol=32 * 2.0**-23)


def test_inverse_sqrt_equals_transformers():
    """Theirs counts updates from 0, and the first has no rate."""
    transformers = pytest.importorskip("transformers")
    theirs = torch_rates(lambda optimizer: transformers.get_inverse_sqrt_schedule(optimizer, 16), 101)
    found = rates(100, schedule="inverse_sqrt", warmup=16)
    np.testing.assert_allclose(found, theirs[1:], rtol=16 * 2.0**-23)


def test_cosine_equals_transformers():
    """After the warm-up of N updates, transformers' schedule of one update fewer, which ends at its last + 1."""
    transformers = pytest.importorskip("transformers")
    cosine = transformers.get_cosine_with_min_lr_schedule_with_warmup
    theirs = torch_rates(lambda optimizer: cosine(optimizer, 10, 99, min_lr_rate=0.2), 100)
    np.testing.assert_allclose(rates(100, schedule="cosine", warmup=10)[10:], theirs[10:], rtol=16 * 2.0**-23)
