"""A mesh changes where numbers live, not which: every config, option and optimizer against one device.

Float32 throughout. A sum of n terms in another order differs by about sqrt(n) machine epsilons of its size (errors of
random sign); the longest here have under 2^13 terms (512 tokens, or 128 features of 2 layers, forward and backward).
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bigjax import models, params, sharding
from bigjax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from tests.on_meshes import MANY_DEVICES, ONE_DEVICE, Result, initial, many_devices, one_step, program, shrunk

EPSILON = float(np.finfo(np.float32).eps)
TOLERANCE = EPSILON * (2**13) ** 0.5
"""1.1e-5, relative to the norm of the tensor."""

CONFIGS = shrunk()

SPLITTING = ["data 2, fsdp 2, tensor 2", "fsdp 8"]
"""Parameters split over fsdp and tensor with a copy for each data, and over fsdp: all the ways of storing them."""


def splitting(cfg: Config) -> list[str]:
    """Return the meshes that split all that can be split of a config, the one that splits most first."""
    return ["fsdp 2, expert 2, tensor 2, sequence", SPLITTING[0]] if cfg.model.moe.num_experts else SPLITTING


def cases(meshes: Callable[[Config], Iterable[str]]) -> list[Any]:
    """Return every config with each of its meshes.

    The first of each family, sparse or not, is always tried on the mesh that splits most, which has to do with all of
    its options and sizes. The rest is for `-m exhaustive`.
    """
    always = {
        (cfg.model.family, cfg.model.moe.num_experts > 0): name for name, cfg in reversed(CONFIGS.items())
    }.values()
    return [
        pytest.param(name, mesh_name, marks=[] if name in always and number == 0 else pytest.mark.exhaustive)
        for name, cfg in CONFIGS.items()
        for number, mesh_name in enumerate(meshes(cfg))
    ]


def gradient_tolerance(grads: dict[str, np.ndarray]) -> dict[str, float]:
    """Return how far each gradient may be off, in 2-norm.

    The second part is for tensors whose gradient cancels to nothing, such as that of a bias on the keys, which softmax
    does not see: what is left is the rounding of the numbers it was summed from.
    """
    total = np.sqrt(sum(np.sum(np.square(g)) for g in grads.values()))
    return {name: TOLERANCE * float(np.linalg.norm(g)) + EPSILON * float(total) for name, g in grads.items()}


def assert_same_loss_and_gradients(expected: Result, actual: Result) -> None:
    assert actual.metrics == pytest.approx(expected.metrics, rel=TOLERANCE)
    assert actual.metrics["tokens"] == expected.metrics["tokens"] > 0
    assert actual.grads.keys() == expected.grads.keys()
    allowed = gradient_tolerance(expected.grads)
    off = {name: float(np.linalg.norm(actual.grads[name] - g)) for name, g in expected.grads.items()}
    assert {name: (off[name], allowed[name]) for name in off if not off[name] <= allowed[name]} == {}


@pytest.mark.sample(5)
@pytest.mark.parametrize(("name", "mesh_name"), cases(splitting))
def test_initial_parameters_have_the_same_bits(name, mesh_name):
    expected, actual = initial(CONFIGS[name]), initial(CONFIGS[name], mesh_name)
    assert actual.keys() == expected.keys()
    for parameter, value in expected.items():
        np.testing.assert_array_equal(actual[parameter], value, err_msg=parameter)


@pytest.mark.parametrize(("name", "mesh_name"), cases(many_devices))
def test_every_config_has_the_loss_and_gradients_of_one_device(name, mesh_name):
    assert_same_loss_and_gradients(one_step(CONFIGS[name]), one_step(CONFIGS[name], mesh_name))


def test_vectors_large_enough_to_be_split_have_the_gradients_of_one_device(monkeypatch):
    # With a limit that the vectors of two layers exceed and those of one do not, as those of many layers do in earnest.
    monkeypatch.setattr(sharding, "REPLICATION_LIMIT_BYTES", 200)
    cfg, mesh_name = CONFIGS["gpt:d12"], "fsdp 4, tensor 2, sequence"
    run = program(cfg, mesh_name)
    biases = run.model.specs["blocks"]["attn"]["q_bias"], run.model.specs["blocks"]["mlp"]["up_bias"]
    assert [run.layout.param(bias) for bias in biases] == [P(None, "tensor", "fsdp"), P(None, ("tensor", "fsdp"))]
    assert_same_loss_and_gradients(one_step(cfg), one_step.__wrapped__(cfg, mesh_name))


def variant(optimizer: str, model: dict | None = None, **train) -> Config:
    """Return a run whose dimensions of 128 and more make Adafactor factor its second moments."""
    common = {"vocab_size": 130, "d_model": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "d_ff": 160}
    return Config(
        model=ModelConfig(**common, num_layers=2, max_seq_len=32, tie_embeddings=False, **(model or {})),
        data=DataConfig(seq_len=32),
        train=TrainConfig(steps=10, global_batch_size=16, **train),
        optim=OptimConfig(name=optimizer, lr=1e-2, schedule="constant", ema_decay=0.75),
    )


VARIANTS = {
    "adamw, z-loss and label smoothing": variant("adamw", z_loss=1e-2, label_smoothing=0.1),
    "adam, 2 microbatches": variant("adam", microbatches=2),
    "sgd, loss in 4 chunks": variant("sgd", {"final_softcap": 5.0}, loss_chunks=4, z_loss=1e-2, label_smoothing=0.1),
    "adafactor, unrolled, full remat": variant("adafactor", {"layers": "unroll", "remat": "full"}),
    "lion, dropout": variant("lion", {"dropout": 0.2}, microbatches=2),
    "muon, blocked attention": variant("muon", {"attention": "blocked"}, loss_chunks=2),
    "adamw, muP": variant(
        "adamw", {"parametrization": "mup", "mup": {"base_d_model": 64, "base_num_layers": 1}}, microbatches=2
    ),
}
"""One optimizer each, and options that change how loss and gradients are computed."""

VARIANT_MESHES = MANY_DEVICES[:2]
"""These split parameters over fsdp too; fsdp or data alone is tested with every config."""


@pytest.mark.sample(3)
@pytest.mark.parametrize("mesh_name", VARIANT_MESHES)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_option_has_the_loss_and_gradients_of_one_device(name, mesh_name):
    cfg = VARIANTS[name]
    assert_same_loss_and_gradients(one_step(cfg, ONE_DEVICE, True), one_step(cfg, mesh_name, True))


@pytest.mark.parametrize("mesh_name", VARIANT_MESHES)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_optimizer_makes_the_update_of_one_device(name, mesh_name):
    cfg = VARIANTS[name]
    before = initial(cfg)
    expected, actual = one_step(cfg, ONE_DEVICE, True), one_step(cfg, mesh_name, True)
    gradient_error = gradient_tolerance(expected.grads)
    specs = params.names(models.build(cfg.model).specs)
    for parameter, start in before.items():
        grad, error = expected.grads[parameter], gradient_error[parameter]
        update = expected.updated[parameter] - start
        assert np.any(update), parameter
        # Storing the sum of parameter and update rounds it, to half an epsilon on each mesh.
        rounding = EPSILON * np.abs(start).max()
        difference = actual.updated[parameter] - expected.updated[parameter]
        if cfg.optim.name == "muon" and specs[parameter].kind == "matrix":
            for layer in range(cfg.model.num_layers):
                allowed = muon_tolerance(cfg, specs[parameter], error / np.linalg.norm(grad[layer]))
                assert np.linalg.norm(difference[layer]) <= allowed + rounding * start[layer].size ** 0.5, parameter
        elif cfg.optim.name == "sgd":
            # Linear in the gradient; clipping scales by the global norm, which is as far off again.
            assert np.all(np.abs(difference) <= cfg.optim.lr * 2 * error + rounding), parameter
        else:
            # u = g / f(|g|), where f is |g| itself or a mean of it over rows and over columns: an error e of g moves u
            # by up to e / |g| for each of the three, and by no more than a change of sign.
            with np.errstate(divide="ignore"):
                moved = np.minimum(3 * error / np.abs(grad), 2)
            assert np.all(np.abs(difference) <= np.abs(update).max() * moved + rounding), parameter


def muon_tolerance(cfg: Config, spec: params.ParamSpec, relative_error: float) -> float:
    """Return how far the update of one matrix may be off, in 2-norm.

    Muon divides a matrix by its norm (which doubles a relative error) and applies 3.4445 x - 4.775 x^3 + 2.0315 x^5
    five times to its singular values, whose slope on [0, 1] is at most 3.4445 (Jordan et al. 2024).
    """
    fan_in = np.prod([size for size, axis in zip(spec.shape, spec.axes, strict=True) if axis in spec.contracts])
    fan_out = spec.size / spec.shape[0] / fan_in
    return cfg.optim.muon_lr * max(1.0, fan_out / fan_in) ** 0.5 * 3.4445**5 * 2 * relative_error


@pytest.mark.parametrize("mesh_name", [ONE_DEVICE, *VARIANT_MESHES])
@pytest.mark.parametrize("name", VARIANTS)
def test_averaged_parameters_follow_their_definition(name, mesh_name):
    cfg = VARIANTS[name]
    after, decay = one_step(cfg, mesh_name, True), cfg.optim.ema_decay
    for parameter, start in initial(cfg).items():
        average = decay * start + (1 - decay) * after.updated[parameter]
        # Two products and a sum, each rounded once.
        np.testing.assert_allclose(after.ema[parameter], average, rtol=0, atol=3 * EPSILON * np.abs(average).max())
