"""What is kept about a step that diverged: enough to look at it, and to run exactly that step again."""

import math
import shlex
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from bigjax.config import Config
from bigjax.data import Batch, TextData
from bigjax.paths import AnyPath
from bigjax.run.folder import RunFolder
from bigjax.run.json_files import dumps, write_json, write_text

EVENT = "event.json"
"""The file that describes the step."""


@dataclass(frozen=True)
class Event:
    """One step that diverged; numbers as Python floats, so that JSON gives them back bit for bit.

    Attributes:
      step: its number, from 1.
      kind: `non-finite` or `spike`.
      policy: what the config says to do about it.
      batch: number of the batch it took.
      left_out: the batches that rollbacks had left out before.
      loss: of the batch.
      grad_norm: of all gradients.
      median, deviation: of loss and gradient norm in the window before the step, as far as they are watched.
      modules: name of a parameter -> `param_norm` before the step and `grad_norm`.
    """

    step: int
    kind: str
    policy: str
    batch: int
    left_out: tuple[int, ...]
    loss: float
    grad_norm: float
    median: list[float] | None
    deviation: list[float] | None
    modules: dict[str, dict[str, float]]

    @property
    def name(self) -> str:
        """The name of its folder: the same whenever the same step of the same run comes to pass again."""
        return f"step-{self.step}" + (f"-rollback-{len(self.left_out)}" if self.left_out else "")

    def __str__(self) -> str:
        if self.kind == "non-finite":
            norms = {name: found["grad_norm"] for name, found in self.modules.items()}
            first = next((name for name, norm in norms.items() if not math.isfinite(norm)), None)
            where = f", first in the gradient of {first}" if first else ""
            return f"step {self.step} is not finite (loss {self.loss}, gradient norm {self.grad_norm}{where})"
        parts = [
            f"{name} {value:.6g} after a median of {median:.6g} and a median deviation of {deviation:.3g}"
            for name, value, median, deviation in zip(
                ("loss", "gradient norm"),
                (self.loss, self.grad_norm),
                self.median or (),
                self.deviation or (),
                strict=True,
            )
        ]
        return f"step {self.step} spikes ({'; '.join(parts)})"


def observed(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an `Event` that the metrics of a step hold."""
    host = jax.device_get({name: metrics.get(name) for name in (*_SCALARS, *_PAIRS, "param_norms", "grad_norms")})
    scalars = {name: float(host[name]) for name in _SCALARS}
    pairs = {name: None if host[name] is None else host[name].tolist() for name in _PAIRS}
    modules = {
        name: {"param_norm": float(norm), "grad_norm": float(host["grad_norms"][name])}
        for name, norm in host["param_norms"].items()
    }
    return scalars | pairs | {"modules": modules}


_SCALARS, _PAIRS = ("loss", "grad_norm"), ("median", "deviation")


def _content(batch: Batch, row: int, text: TextData) -> dict[str, Any]:
    """Return what a row of a batch says, as text where it is tokens, else its numbers."""
    if "tokens" in batch.arrays:
        return {"text": text.tokenizer.decode(batch.arrays["tokens"][row])}
    return {name: values[row].tolist() for name, values in batch.arrays.items()}


def write(where: AnyPath, event: Event, cfg: Config, folder: RunFolder, batch: Batch, text: TextData) -> None:
    """Write the folder `where` of an event: process 0 `event.json`, every process `batch-PROCESS.jsonl`.

    The latter has a line for each of its rows: id, source, epoch, row there, text or numbers.

    Raises:
      OSError: something cannot be written.
    """
    where.mkdir(parents=True, exist_ok=True)
    source, epoch, row = text.train.order.locate(np.maximum(batch.ids, 0))
    lines = [
        {
            "id": int(batch.ids[i]),
            "source": text.train.sources[source[i]].spec,
            "epoch": int(epoch[i]),
            "row": int(row[i]),
            **_content(batch, i, text),
        }
        for i in np.flatnonzero(batch.ids >= 0).tolist()
    ]
    write_text(where / f"batch-{jax.process_index()}.jsonl", "".join(dumps(line) + "\n" for line in lines))
    if jax.process_index() == 0:
        rows = text.train.ids(event.batch, range(text.train.size(event.batch)))
        described = vars(event) | {"batch_ids": rows.tolist(), "rng": _rng(cfg, event.step)}
        write_json(where / EVENT, described | {"replay": replay_command(folder, event)})


def replay_command(folder: RunFolder, event: Event) -> str:
    """Return the command that runs the step of an event again, on as many devices and processes."""
    devices, processes = jax.local_device_count(), jax.process_count()
    prefix = f"JAX_NUM_CPU_DEVICES={devices} " if jax.default_backend() == "cpu" and devices > 1 else ""
    suffix = f" --num_processes={processes}" if processes > 1 else ""
    workdir = shlex.quote(f"--workdir={folder.path}")
    return f"{prefix}python -m bigjax check replay {workdir} --event={event.name}{suffix}"


def _rng(cfg: Config, step: int) -> dict[str, Any]:
    """Return what the random numbers of a step come from: the seed, and the key that dropout folds it into."""
    key = jax.random.fold_in(jax.random.key(cfg.train.seed + 1), step - 1)
    return {"seed": cfg.train.seed, "step_key": np.asarray(jax.random.key_data(key)).tolist()}
