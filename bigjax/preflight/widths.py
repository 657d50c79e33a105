"""The coordinate check of muP: how activations, and what training changes in them, grow with the width and the depth.

Small models of several sizes take a few steps on one batch by both parametrizations (Yang et al. 2022, appendix D.1).
Measured is what models name as they compute it (`checkpoint_name`), and the logits.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigjax import models, params
from bigjax.config import Config, replace
from bigjax.config.mup import MupConfig
from bigjax.config.named import section
from bigjax.errors import ConfigError
from bigjax.preflight.shrink import shrink
from bigjax.tasks import named_task, random_batch
from bigjax.train import optimizers as optim

TOLERANCE = 0.25
"""Rules are powers of sqrt(size): a wrong one moves some exponent by 1/2 or more. This is half of that."""

HEAD_DIM = 8
"""Where heads grow in number. Where they grow in size, as `model.mup.base_head_dim` says, there are 4."""

LR = {"sgd": 0.1, "adam": 3e-3, "adamw": 3e-3, "muon": 3e-3}
"""Rates at which a few steps change small models visibly, and none beyond what their first updates say."""

MUON_LR = 0.02


class Size(NamedTuple):
    """Root mean square of an array at the start, and of its change since then; or the exponents of both."""

    start: float
    change: float


@dataclass(frozen=True)
class Growth:
    """How what one parametrization computes grows with the width, or with the depth.

    Attributes:
      along: `width` or `depth`. values: those that were tried.
      sizes: at every one, by name.
      slopes: the exponents of the width or depth, by name.
      lazy: the exponent with which a change within blocks may fall.
    """

    parametrization: str
    along: str
    values: tuple[int, ...]
    sizes: tuple[dict[str, Size], ...]
    slopes: dict[str, Size]
    lazy: float = 0.0

    def uneven(self) -> dict[str, list[str]]:
        """Return the quantities (`start`, `change`) by name whose exponent is not 0, within `TOLERANCE`.

        Logits may fall at the start: an output weight that has not learned yet adds up as a random walk, which muP
        divides by the width, and might as well be zero (Yang et al. 2022, appendix D.2). So may what each of many
        blocks learns where alpha is below 1, as alpha - 1, but not all of them together (Dey et al. 2025, section 3): a
        few steps do not show a rate that is wrong there.
        """
        found: dict[str, list[str]] = {}
        for name, slope in self.slopes.items():
            falls = name == "logits" and slope.start < 0
            if not (abs(slope.start) <= TOLERANCE or falls):
                found.setdefault(name, []).append("start")
            least = 0.0 if name == "logits" else self.lazy
            if not least - TOLERANCE <= slope.change <= TOLERANCE:
                found.setdefault(name, []).append("change")
        return found


def over_widths(cfg: Config, parametrization: str, widths: Sequence[int], *, steps: int, seeds: int) -> Growth:
    """Train `cfg` made small at every width and return what grew. The narrowest is muP's base shape.

    Raises:
      ConfigError: muP has no rule for something in it, or a width does not fit.
    """
    small = (at_width(cfg, width, min(widths), parametrization) for width in widths)
    return _fitted(parametrization, "width", widths, [sizes_at(one, steps=steps, seeds=seeds) for one in small])


def over_depths(
    cfg: Config, parametrization: str, depths: Sequence[int], width: int, *, steps: int, seeds: int
) -> Growth:
    """Train `cfg` made small at every depth and return what grew. The shallowest is muP's base shape.

    What blocks name is one quantity over all of them, its root mean square.

    Raises:
      ConfigError: muP has no rule for something in it, or a depth does not fit.
    """
    small = (at_depth(cfg, depth, min(depths), width, parametrization) for depth in depths)
    sizes = [_by_kind(sizes_at(one, steps=steps, seeds=seeds)) for one in small]
    return dataclasses.replace(_fitted(parametrization, "depth", depths, sizes), lazy=cfg.model.mup.depth_alpha - 1)


def _by_kind(sizes: dict[str, Size]) -> dict[str, Size]:
    kinds: dict[str, list[Size]] = {}
    for name, size in sizes.items():
        kinds.setdefault(_kind(name), []).append(size)
    return {kind: Size(*map(float, np.sqrt(np.mean(np.square(found), axis=0)))) for kind, found in kinds.items()}


def _kind(name: str) -> str:
    return name.split()[0]


def _fitted(parametrization: str, along: str, values: Sequence[int], sizes: Sequence[dict[str, Size]]) -> Growth:
    logs = {name: np.log([[one[name].start, one[name].change] for one in sizes]) for name in sizes[0]}
    slopes = {name: Size(*map(float, np.polyfit(np.log(values), y, 1)[0])) for name, y in logs.items()}
    return Growth(parametrization, along, tuple(values), tuple(sizes), slopes)


def draw(growths: Sequence[Growth], title: str, path: str | Path) -> None:
    """Draw every size against the width or depth, at the start and as it has changed, a column a growth."""
    path = Path(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(growths), 7.5), layout="constrained")
    panels = figure.subplots(2, len(growths), sharex="col", sharey="row", squeeze=False)
    kinds = {_kind(name): None for growth in growths for name in growth.slopes}
    colours = {kind: f"C{number}" for number, kind in enumerate(kinds)}
    for column, growth in enumerate(growths):
        for row, quantity in enumerate(Size._fields):
            panel, labelled = panels[row, column], set()
            for name in growth.slopes:
                kind = _kind(name)
                values = [getattr(one[name], quantity) for one in growth.sizes]
                label = None if kind in labelled else kind
                labelled.add(kind)
                panel.plot(growth.values, values, "o-", color=colours[kind], label=label, markersize=3, linewidth=1)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
            panel.grid(alpha=0.3)
        panels[0, column].set_title(growth.parametrization)
        panels[1, column].set_xlabel(growth.along)
    panels[0, 0].set_ylabel("root mean square at the start")
    panels[1, 0].set_ylabel("root mean square of the change")
    panels[0, -1].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def at_width(cfg: Config, width: int, base: int, parametrization: str) -> Config:
    """Return `cfg` made small and `width` wide, by a parametrization; muP's base shape is `base` wide.

    Raises:
      ConfigError: there is no rule for something in it.
    """
    unset = {"parametrization": "standard", "mup": MupConfig()}
    small = shrink(replace(cfg, model=unset))
    if not small.model.num_kv_heads:
        raise ConfigError(f"model.parametrization='mup' has no rules for model.family={cfg.model.family!r}")
    group, ratio = small.model.num_heads // small.model.num_kv_heads, small.model.d_ff / small.model.d_model
    in_size = cfg.model.mup.base_head_dim != 0
    heads = 4 if in_size else width // HEAD_DIM
    experts = small.model.moe
    sizes: dict[str, Any] = {
        "d_model": width,
        "num_heads": heads,
        "num_kv_heads": heads // group if heads % group == 0 else heads,
        "head_dim": width // heads,
        "d_ff": max(round(ratio * base), 1) * width // base,
        "moe": dataclasses.replace(experts, d_ff=experts.d_ff * width // base),
    }
    mup = {"parametrization": "mup", "mup.base_d_model": base}
    if in_size:
        mup |= {"mup.base_head_dim": base // heads}
    plain = {"dtype": "float32", "dropout": 0.0, "attention": "reference", "remat": "none", "layers": "unroll"}
    rate = {"lr": LR.get(cfg.optim.name, cfg.optim.lr), "muon_lr": MUON_LR}
    return replace(
        small,
        model=sizes | plain | (mup if parametrization == "mup" else {}),
        optim=rate | {"schedule": "constant", "warmup": 0.0, "decay": 0.0, "weight_decay": 0.0, "grad_clip": None},
        train={"microbatches": 1, "loss_chunks": 1},
    )


def at_depth(cfg: Config, depth: int, base: int, width: int, parametrization: str) -> Config:
    """Return `cfg` made small and `depth` deep, both stacks of an encoder-decoder, at one width.

    Raises:
      ConfigError: there is no rule for something in it, or its layers repeat after a number that does not divide depth.
    """
    small = at_width(cfg, width, width, parametrization)
    fields: dict[str, Any] = {"num_layers": depth}
    if small.model.num_decoder_layers:
        fields[f"{section(small.model.family)}.num_decoder_layers"] = depth
    if parametrization == "mup":
        fields |= {"mup.base_num_layers": base, "mup.depth_alpha": cfg.model.mup.depth_alpha}
    return replace(small, model=fields)


def sizes_at(cfg: Config, *, steps: int, seeds: int) -> dict[str, Size]:
    """Return sizes at the start and of changes after `steps` updates, geometric means over `seeds` initial values.

    What is all zeros at the start, or does not change, is left out.
    """
    model = models.build(cfg.model)
    batch = {name: jnp.asarray(value) for name, value in random_batch(cfg).items()}
    tx, loss_of = optim.build(cfg.optim, model.specs, steps), named_task(cfg).loss

    def loss(p):
        total, count = loss_of(model, p, batch, cfg.train)["loss"]
        return total / count

    @jax.jit
    def step(p, state):
        updates, state = tx.update(jax.grad(loss)(p), state, p)
        return optax.apply_updates(p, updates), state

    init = jax.jit(lambda key: params.init(model.specs, key))
    look = jax.jit(lambda p: named(loss)(p)[1])
    rows = []
    for seed in range(seeds):
        start = p = init(jax.random.key(seed))
        state: Any = tx.init(p)
        for _ in range(steps):
            p, state = step(p, state)
        before, after = look(start), look(p)
        rows.append({name: (_rms(x), _rms(after[name] - x)) for name, x in before.items()})
    found = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        if values.all():
            found[name] = Size(*map(float, np.exp(np.log(values).mean(axis=0))))
    return found


def named(function: Callable) -> Callable:
    """Return a function with the results of `function`, and of all that it names on its way, by name and number.

    A name that is given once has no number. What is named within a loop or a function compiled apart is not seen.
    """

    def both(*args):
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        values = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        values |= dict(zip(closed.jaxpr.invars, jax.tree.leaves(args), strict=True))
        found: dict[str, list[jax.Array]] = {}
        read = lambda atom: atom.val if hasattr(atom, "val") else values[atom]  # noqa: E731
        for eqn in closed.jaxpr.eqns:
            out = eqn.primitive.bind(*map(read, eqn.invars), **eqn.primitive.get_bind_params(eqn.params))
            results = out if eqn.primitive.multiple_results else [out]
            values |= dict(zip(eqn.outvars, results, strict=True))
            if eqn.primitive.name == "name":
                found.setdefault(eqn.params["name"], []).append(results[0])
        numbered = {
            name if len(arrays) == 1 else f"{name} {number}": array
            for name, arrays in found.items()
            for number, array in enumerate(arrays, 1)
        }
        return jax.tree.unflatten(jax.tree.structure(shape), list(map(read, closed.jaxpr.outvars))), numbered

    return both


def _rms(x: jax.Array) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)))))
