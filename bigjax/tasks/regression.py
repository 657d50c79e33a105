"""Predicting a number from the numbers of a record, such as a column of a table from the others (an MLP).

Features and target are trained on in units of their spread; what is reported is in the target's own.
Legend: B batch, N records, F features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigjax.config import Config, TrainConfig
from bigjax.data.cutting import Cut
from bigjax.data.errors import DataError
from bigjax.data.rows import example as examples
from bigjax.data.rows.packed import Rows
from bigjax.data.rows.table import Scaler, Table, finite, numbers
from bigjax.data.sources.opening import SplitSource
from bigjax.data.sources.readers import ALL
from bigjax.errors import listed
from bigjax.tasks.task import Answers, Asked, Batch, Report, Task

if TYPE_CHECKING:
    import jax

    from bigjax.models import Model
    from bigjax.sharding import Layout
    from bigjax.tasks.sums import Sums


@dataclass(frozen=True)
class Fields:
    """The columns: `target` is predicted from `features`, which are all the others where none are named."""

    target: str = "target"
    """The column that is predicted."""
    features: tuple[str, ...] = ()
    """The columns that are read; empty means all others with numbers."""


def processor(cfg: Any, sides: Sequence[SplitSource], root: Path) -> Scaler:
    """Return the scaler of the columns of what is trained on.

    Raises:
      DataError: a column is missing or holds no numbers, or there is no record.
    """
    del root
    target, features = cfg.task.target, cfg.task.features
    if not features:
        first = next((record for side in sides for _, (record,) in side.documents()), {})
        # An array, such as an image, is no feature by default.
        features = tuple(name for name, value in first.items() if name != target and np.ndim(value) == 0)
    values = numbers(sides, features, target)
    if not len(values):
        raise DataError(f"there is no record to train on in {listed(map(repr, cfg.data.sources))}")
    return Scaler.fit(features, target, values)


def rows(cfg: Any, scaler: Scaler, root: Path, training: Sequence[SplitSource]) -> Cut:
    """Make a row of each record."""
    del root, training
    if len(scaler.features) != (wanted := cfg.model.own.features):
        raise DataError(
            f"the table has {len(scaler.features)} features ({listed(scaler.features)}), but model.mlp.features="
            f"{wanted}: set model.mlp.features={len(scaler.features)}, or name some in task.features"
        )

    def cut(side: SplitSource) -> Rows:
        values = numbers([side], scaler.features, scaler.target)
        if not len(values):
            raise DataError(f"{side.source.spec!r} has no record for {side.split} (rule {side.rule})")
        return Table(side.source.spec, scaler.scale(values).astype(np.float32), scaler)

    return cut


def example(cfg: Any, rng: np.random.Generator) -> Batch:
    """Return random rows, the last of them padding if there are several."""
    count = max(cfg.train.global_batch_size - 1, 1)
    values = rng.standard_normal((count, cfg.model.own.features + 1)).astype(np.float32)
    return examples.batch(cfg, Table("random", values))


def predict(
    model: "Model", params: Any, batch: Mapping[str, "jax.Array"], *, layout: "Layout", key: Any = None
) -> "jax.Array":
    """Return the scaled predictions `(B,)` in float32."""
    x_BD, _ = model.family.apply(params, batch["inputs"], model.cfg, layout=layout, key=key, rows_B=batch.get("rows"))
    return model.family.values(params, x_BD, model.cfg, layout)


def loss(
    model: "Model",
    params: Any,
    batch: Mapping[str, "jax.Array"],
    cfg: TrainConfig,
    *,
    layout: "Layout | None" = None,
    key: Any = None,
) -> "Sums":
    """Return `loss`, the squared errors of the scaled targets."""
    from bigjax.sharding import UNSHARDED
    from bigjax.tasks.losses import mean_squared_error

    del cfg
    found_B = predict(model, params, batch, layout=layout or UNSHARDED, key=key)
    return {"loss": mean_squared_error(found_B, batch["targets"], batch["weights"])}


def report(found_N: np.ndarray, true_N: np.ndarray, held_out: Any) -> Report:
    """Return `regression`: `mse`, `rmse`, `mae` and `r2` in the target's own units, and `rows`.

    R² is one minus the squared errors over those of the mean of the true values, as scikit-learn's `r2_score`; None
    where these are all the same.
    """
    scaler = held_out.sources[0].scaler
    found, true = scaler.in_units(found_N), scaler.in_units(true_N)
    errors, spread = found - true, true - true.mean()
    mse = float(np.mean(errors**2))
    measured = {
        "rows": len(true),
        "mse": mse,
        "rmse": mse**0.5,
        "mae": float(np.mean(np.abs(errors))),
        "r2": 1 - float(errors @ errors / (spread @ spread)) if spread.any() else None,
    }
    said = ", ".join(f"{name} {value:.6g}" for name, value in measured.items() if value is not None)
    return {"regression": measured}, f"{scaler.target}: {said}"


def ask(cfg: Config, scaler: Scaler) -> Callable[..., Asked]:
    """Make a row of the features of a record; the answer is the target in its own units."""
    del cfg

    def asked(*values: Any) -> Asked:
        features = [finite(value, column) for value, column in zip(values, scaler.features, strict=True)]
        inputs_F = scaler.scale(np.array([*features, 0.0]))[:-1].astype(np.float32)
        return Asked([{"inputs": inputs_F}], lambda found: {"prediction": float(scaler.in_units(found[0]))})

    return asked


def problems(cfg: Config) -> Iterator[str]:
    """Ask for rows of one record, and for nothing that belongs to tokens."""
    data, train, name = cfg.data, cfg.train, cfg.train.objective
    if data.seq_len != 1:
        yield f"data.seq_len={data.seq_len}: a row of train.objective={name!r} is one record: set data.seq_len=1"
    for field, value in (("z_loss", train.z_loss), ("label_smoothing", train.label_smoothing)):
        if value:
            yield f"train.{field}={value} is for classes, not for the numbers of train.objective={name!r}"
    if data.special_tokens:
        yield f"data.special_tokens=True is for texts, not for train.objective={name!r}"


TASK = Task(
    families=("mlp",),
    head=None,
    columns=lambda cfg: (ALL,),
    rows=rows,
    example=example,
    loss=loss,
    processor=processor,
    load_processor=Scaler.load,
    metrics=("loss",),
    unit="rows",
    whole=True,
    predict=predict,
    report=report,
    answers=Answers(lambda cfg, scaler: scaler.features, ask, lambda cfg: {"prediction": 0.0}, padded=()),
    problems=problems,
    fields=Fields,
)
