"""Stop a run whose loss or gradient is not finite, and keep the evidence."""

import math
from typing import Any

import jax
import numpy as np

from bigjax.errors import UserError
from bigjax.json_files import write_json
from bigjax.run_folder import RunFolder


class NonFinite(UserError):
    """The loss or the gradient of a step was not finite. The newest checkpoint is from before that step."""

    exit_code = 3


def check_finite(folder: RunFolder, step: int, ids: np.ndarray, metrics: dict[str, Any]) -> None:
    """Wait for the metrics of `step` and return if its loss and gradient norm are finite.

    Otherwise write `nonfinite.json`: the step, this process's batch ids, loss, gradient norm and that of every
    parameter.

    Raises:
      NonFinite: they are not, naming the first parameter with a gradient that is not finite.
    """
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    if math.isfinite(loss) and math.isfinite(norm):
        return
    norms = {name: float(value) for name, value in jax.device_get(metrics["grad_norms"]).items()}
    evidence = {"step": step, "batch_ids": ids.tolist(), "loss": loss, "grad_norm": norm, "grad_norms": norms}
    if jax.process_index() == 0:
        write_json(folder.nonfinite, evidence)
    first = next((name for name, value in norms.items() if not math.isfinite(value)), None)
    where = f", first in the gradient of {first}" if first else ""
    raise NonFinite(
        f"step {step} is not finite (loss {loss}, gradient norm {norm}{where}); no checkpoint was written after it; "
        f"the evidence is in {folder.nonfinite}"
    )
