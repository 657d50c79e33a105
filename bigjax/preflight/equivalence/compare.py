"""Does every mesh compute what one device computes? One step of a small config on each, tensor by tensor.

Compared, in this order: the batch and the initial parameters, bit for bit; the count of tokens, bit for bit, and the
losses; the gradient of every parameter; one step of Adam on it that exposes its scale (`observation.recording`); and
the parameters after the config's own optimizer, against what one device makes of the same gradients, so that an
optimizer that amplifies small differences (the sign of a gradient near 0) raises no alarm. Within each, parameters come
in the order in which the model is declared, which is that of its forward pass. Every copy of a replicated array counts,
not only the first device's. Bounds are those of `error_bounds`.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import lcm
from typing import Any, Literal

import jax
import numpy as np
import optax

from bigjax import params
from bigjax.config import Config, MeshConfig, replace
from bigjax.errors import UserError
from bigjax.preflight.equivalence import bounds as error_bounds
from bigjax.preflight.equivalence.meshes import MAX_DEVICES, devices, mesh_name
from bigjax.preflight.equivalence.observation import MEANS, MeshFailure, Observation, Stage, distance, whole
from bigjax.preflight.shrink import shrink
from bigjax.tasks import random_batch


@dataclass(frozen=True)
class Difference:
    """One tensor that differs: 2-norms of the difference and of what rounding allows."""

    quantity: str
    tensor: str
    error: float
    bound: float

    @property
    def what(self) -> str:
        """Its name in words."""
        return f"{self.quantity} {self.tensor}"

    def __str__(self) -> str:
        allowed = "must be equal bit for bit" if self.bound == 0 else f"bound {self.bound:.1e}"
        return f"{self.what}: off by {self.error:.1e}, {allowed}"


@dataclass(frozen=True)
class Check:
    """One mesh against one device.

    Attributes:
      status: `same`; `differs`, in `differences`, the first tensor first; `fails` to trace, compile or run; or
        `does not fit`. `reason` explains the last two.
      largest_ratio: the largest error divided by its bound, of what need not be equal bit for bit, at `largest_at`.
    """

    mesh: str
    dtype: str
    status: Literal["same", "differs", "fails", "does not fit"]
    reason: str = ""
    differences: tuple[Difference, ...] = ()
    largest_ratio: float = 0.0
    largest_at: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Reference:
    """What one device computes, and how far others may be off.

    Attributes:
      order: parameters in the order of the forward pass. values: parameters the step starts from.
      scales: 2-norm of the terms of every gradient: the sum over the rows of the size of what each contributes.
    """

    cfg: Config
    stage: Stage
    order: tuple[str, ...]
    bounds: error_bounds.Bounds
    batch: dict[str, np.ndarray]
    initial: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    losses: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]
    scaled: dict[str, np.ndarray]
    scales: dict[str, float]
    eps: float

    def allowed(self) -> dict[str, float]:
        """Return the 2-norm by which each gradient may be off."""
        total = np.sqrt(sum(scale**2 for scale in self.scales.values()))
        return {name: self.bounds.relative * s + self.bounds.floor * total for name, s in self.scales.items()}


def reference(cfg: Config, weights: Mapping[str, np.ndarray] | None = None, device: Any = None) -> Reference:
    """Compute on one device what all others are compared with, from given weights or from the perturbed initial ones.

    `device` is the first of the default platform unless it is given.

    Raises:
      UserError: the config does not run here, even on one device.
    """
    mesh = MeshConfig(data=1, allow_replicated=cfg.mesh.allow_replicated)
    stage = Stage(cfg, mesh, devices(mesh) if device is None else [device])
    specs = params.names(stage.model.specs)
    batch = random_batch(cfg)
    try:
        initial = {name: whole(pieces, specs[name].shape) for name, pieces in stage.initial().items()}
        values = perturbed(initial, cfg.model.d_model**-0.5) if weights is None else dict(weights)
        first = stage.observe(values, batch, 1.0)
        grads = _whole(first.grads, specs)
        eps = float(max(np.abs(g).max() for g in grads.values()))
        if not np.isfinite(eps):
            raise UserError(f"one device computes gradients that are not finite in {cfg.model.dtype}")
        seen = stage.observe(values, batch, eps)
        scales = _scales(stage, values, batch, specs)
    except MeshFailure as error:
        raise UserError(f"the shrunk config fails to {error.stage} on one device: {error}") from error
    num_parameters = params.count(stage.model.specs)
    return Reference(
        cfg=cfg,
        stage=stage,
        order=tuple(_module_order(stage.model.specs)),
        bounds=error_bounds.bounds(cfg, num_parameters, MAX_DEVICES, _repeats(batch)),
        batch=batch,
        initial=initial,
        values=values,
        losses={name: whole(pieces, ()) for name, pieces in seen.losses.items()},
        grads=grads,
        scaled=_whole(seen.scaled, specs),
        scales=scales,
        eps=eps,
    )


def perturbed(initial: Mapping[str, np.ndarray], std: float) -> dict[str, np.ndarray]:
    """Return parameters with normal noise added.

    Where biases are 0, norms 1 and scores near 0, a mesh that mixes up their parts would change next to nothing. With
    1 / sqrt(d_model), queries, keys, scores and logits are of the order of 1.
    """
    rng = np.random.default_rng(1)
    return {name: w + rng.normal(0, std, w.shape).astype(np.float32) for name, w in sorted(initial.items())}


def _whole(tensors: Mapping[str, list], specs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: whole(pieces, specs[name].shape) for name, pieces in tensors.items()}


def _module_order(specs: Any, path: str = "") -> Iterator[str]:
    """Yield the names of parameters as a family declares them; `jax.tree` would sort them."""
    for name, value in specs.items():
        at = f"{path}/{name}" if path else name
        if isinstance(value, Mapping):
            yield from _module_order(value, at)
        else:
            yield at


def _repeats(batch: Mapping[str, np.ndarray]) -> int:
    if "tokens" not in batch:  # nothing is looked up
        return len(batch["weights"])
    # An encoder-decoder looks up what it writes in the same table.
    looked_up = [np.concatenate([batch["tokens"], batch["inputs"]], axis=1) if "inputs" in batch else batch["tokens"]]
    looked_up += [batch["positions"]] if "positions" in batch else []
    counted = [np.bincount(ids.ravel()).max() for ids in looked_up]
    return int(max(*counted, batch["tokens"].shape[0]))


def _scales(stage: Stage, values: Mapping, batch: Mapping[str, np.ndarray], specs: Mapping) -> dict[str, float]:
    """Return the 2-norm of every gradient's terms: the sizes of what each row alone contributes, added up."""
    weights, total = batch["weights"], batch["weights"].sum()
    terms = {name: np.zeros(spec.shape) for name, spec in specs.items()}
    for row in range(len(weights)):
        alone = np.zeros(weights.shape, np.float32)  # of the tokens of a row, or of the row itself
        alone[row] = weights[row]
        if not alone.sum():
            continue
        seen = stage.observe(values, {**batch, "weights": alone}, 1.0)
        for name, grad in _whole(seen.grads, specs).items():
            terms[name] += np.abs(grad) * (alone.sum() / total)
    return {name: float(np.linalg.norm(sizes)) for name, sizes in terms.items()}


def in_microbatches(expected: Reference) -> Check | None:
    """Compare one device with itself, when it takes the batch in two parts, or whole if the config takes it in parts.

    A compiler may fail at gradients that are summed in a loop alone. None for a batch that grows, which the parts hold.
    """
    train = expected.cfg.train
    if train.ramp_batch_size:
        return None
    count = 1 if train.num_microbatches > 1 else 2
    other = dataclasses.replace(expected, cfg=replace(expected.cfg, train={"microbatches": count}))
    check = compare(other, MeshConfig(data=1))
    return dataclasses.replace(check, mesh=f"data=1, {count} microbatches" if count > 1 else "data=1, whole batch")


def compare(expected: Reference, mesh: MeshConfig) -> Check:
    """Run the reference's config on `mesh` and compare. What goes wrong on the mesh is in the result."""
    started, cfg = time.monotonic(), expected.cfg
    mesh = dataclasses.replace(mesh, allow_replicated=cfg.mesh.allow_replicated)
    found = Check(mesh_name(mesh), cfg.model.dtype, "same")
    places = devices(mesh)
    try:
        stage = Stage(cfg, mesh, places)
        initial = stage.initial()
        seen = stage.observe(expected.values, expected.batch, expected.eps)
    except UserError as error:
        return dataclasses.replace(found, status="does not fit", reason=str(error))
    except MeshFailure as error:
        reason = f"fails to {error.stage}: {error}"
        return dataclasses.replace(found, status="fails", reason=reason, seconds=time.monotonic() - started)
    found = judged(found, _compared(expected, initial, seen))
    return dataclasses.replace(found, seconds=time.monotonic() - started)


def judged(check: Check, comparisons: Iterable[Difference]) -> Check:
    """Return `check` with what exceeds its bound, and what comes nearest to it."""
    differences, ratio, at = [], 0.0, ""
    for one in comparisons:
        if not one.error <= one.bound:
            differences.append(one)
        if one.bound and not one.error <= ratio * one.bound:
            ratio, at = one.error / one.bound, one.what
    status = "differs" if differences else "same"
    return dataclasses.replace(check, status=status, differences=tuple(differences), largest_ratio=ratio, largest_at=at)


def _compared(expected: Reference, initial: Mapping[str, list], seen: Observation) -> Iterator[Difference]:
    """Yield every comparison, the first in the order of the computation first."""
    limits = expected.bounds
    for name, value in expected.batch.items():
        yield Difference("batch", name, distance(seen.batch[name], value), 0.0)
    for name in expected.order:
        yield Difference("initial parameter", name, distance(initial[name], expected.initial[name]), 0.0)
    yield Difference("number of", "tokens", distance(seen.losses["tokens"], expected.losses["tokens"]), 0.0)
    for name in (name for name in MEANS if name in expected.losses):
        value = expected.losses[name]
        yield Difference("mean", name, distance(seen.losses[name], value), limits.relative * abs(float(value)))
    allowed = expected.allowed()
    for name in expected.order:
        yield Difference("gradient", name, distance(seen.grads[name], expected.grads[name]), allowed[name])
    for name in expected.order:
        value = expected.scaled[name]
        # The slope is at most 1 / eps. Bias correction, absolute value, sum and quotient round once each, on both.
        bound = allowed[name] / expected.eps + 4 * limits.storing * float(np.linalg.norm(value))
        yield Difference("Adam step on", name, distance(seen.scaled[name], value), bound)
    updated = _updated(expected, seen)
    for name in expected.order:
        after = updated[name]
        change = float(np.linalg.norm(after - expected.values[name]))
        bound = limits.update * change + limits.storing * float(np.linalg.norm(after))
        yield Difference("updated parameter", name, distance(seen.updated[name], after), bound)


def _updated(expected: Reference, seen: Observation) -> dict[str, np.ndarray]:
    """Return what one device's optimizer makes of the gradients that a mesh computed."""
    stage, specs = expected.stage, params.names(expected.stage.model.specs)
    with jax.set_mesh(stage.mesh):
        start, grads = stage.place(expected.values), stage.place(_whole(seen.grads, specs))
        updates, _ = stage.update(grads, start)
        return params.names(jax.device_get(optax.apply_updates(start, updates)))


@dataclass(frozen=True)
class Report:
    """All checks of one config."""

    config: str
    checks: tuple[Check, ...]
    references: tuple[Reference, ...] = field(repr=False)

    @property
    def exit_code(self) -> int:
        """0 if every mesh that fits computes the same, else 4."""
        return 4 if any(check.status in ("differs", "fails") for check in self.checks) else 0

    def as_json(self) -> dict[str, Any]:
        """Return the report with plain values; bounds are relative, errors are 2-norms."""
        cfg = self.references[0].cfg
        return {
            "schema_version": 1,
            "config": self.config,
            "passed": not self.exit_code,
            "shrunk": dataclasses.asdict(cfg.model) | {"seq_len": cfg.data.seq_len, "rows": len(self._rows)},
            "bounds": {one.cfg.model.dtype: dataclasses.asdict(one.bounds) for one in reversed(self.references)},
            "false_alarm": error_bounds.FALSE_ALARM,
            "checks": [dataclasses.asdict(check) for check in self.checks],
        }

    @property
    def _rows(self) -> np.ndarray:
        return self.references[0].batch["weights"]


def small(cfg: Config) -> list[Config]:
    """Return the shrunk config in float32 and, if it computes in another dtype, in that one.

    Float32 comes first: its bounds are tight. Those of bfloat16 only see errors of the order of the tensor.
    """
    shrunk = shrink(cfg)
    exact = replace(shrunk, model={"dtype": "float32"})
    return [exact] if shrunk == exact else [exact, shrunk]


def for_stages(cfg: Config, meshes: Iterable[MeshConfig]) -> Config:
    """Return `cfg` with as many layers as the stages and repeats of all meshes can share."""
    runs = lcm(*(mesh.stage * mesh.pipeline_repeats for mesh in meshes))
    return replace(cfg, model={"num_layers": runs * cfg.model.period})


def smooth(cfg: Config) -> Config:
    """Return `cfg` with GELU for ReLU, whose derivative jumps at 0: what rounding puts on either side has no bound."""
    return replace(cfg, model={"activation": "gelu"}) if cfg.model.activation == "relu" else cfg
