"""Whether an exported folder is the model it was made from: transformers loads it, and what it computes is compared."""

import dataclasses
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import models
from bigjax.config import ModelConfig
from bigjax.errors import UserError
from bigjax.interop.hf.outputs import COMPARISONS, inputs
from bigjax.run.folder import versions

RELATIVE_TOLERANCE = 1e-4
"""Of the largest number: what float32 leaves after some 100 layers of sums in another order."""

PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}
"""How transformers computes as its code reads: its kernels take no widths but some, and round otherwise."""


class VerificationError(UserError):
    """Transformers cannot load an exported folder, or computes something else from it."""

    exit_code = 4

    def __init__(self, message: str, found: dict[str, Any]):
        super().__init__(message)
        self.found = found


def verify(
    folder: str | Path, class_name: str, cfg: ModelConfig, params: Mapping[str, np.ndarray], specs: Any, dtype: str
) -> dict[str, Any]:
    """Load `folder` with a class of transformers and compare what it makes of random tokens with `params` in `dtype`.

    Both sides compute in float32.

    Returns:
      `verified`: True, or None with `reason` where there is no PyTorch; `compared`, the name of the numbers compared;
      `max_difference` and `tolerance`; `tokens`, the shape of what was read; `versions`.

    Raises:
      VerificationError: tensors are missing or unknown to transformers, or numbers differ by more than the tolerance.
    """
    folder = Path(folder)
    if find_spec("torch") is None:
        return {"verified": None, "reason": "PyTorch is not installed, so transformers could not load the folder"}
    given, compared = inputs(cfg), COMPARISONS[cfg.family, cfg.head]
    found = {"tokens": list(given["tokens"].shape), "versions": versions(("transformers", "torch", "jax"))}
    found |= {"compared": compared.what}
    try:
        theirs, wrong = _theirs(folder, class_name, given, compared.theirs)
    except Exception as error:  # whatever transformers raises means that the folder is of no use
        message = f"transformers cannot load {folder}: {error}"
        raise VerificationError(message, found | {"verified": False, "reason": message}) from error
    if wrong:
        message = f"transformers loads {folder} with {wrong}"
        raise VerificationError(message, found | {"verified": False, "reason": message})
    plain = dataclasses.replace(cfg, dtype="float32", attention="reference", layers="scan", remat="none")
    model = models.build(plain)
    stored = [jnp.asarray(array.astype(jnp.dtype(dtype)).astype(np.float32)) for array in params.values()]
    tree = jax.tree.unflatten(jax.tree.structure(specs), stored)
    ours = np.asarray(jax.jit(lambda tree: compared.ours(model, tree, given))(tree))
    difference = float(np.abs(theirs - ours).max())
    tolerance = RELATIVE_TOLERANCE * max(1.0, float(np.abs(theirs).max()))
    found |= {"max_difference": difference, "tolerance": tolerance}
    if not difference <= tolerance:
        message = f"transformers' {compared.what} from {folder} differ by {difference:.3g}, more than {tolerance:.3g}"
        raise VerificationError(message, found | {"verified": False, "reason": message})
    return {"verified": True, **found}


def _theirs(
    folder: Path, class_name: str, given: Mapping[str, np.ndarray], compute: Callable[..., Any]
) -> tuple[np.ndarray, str]:
    """Return what transformers computes, and what was wrong when it loaded the folder."""
    import torch
    import transformers

    # No bar for what takes a moment.
    transformers.utils.logging.disable_progress_bar()
    loaded: Any = getattr(transformers, class_name).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **PLAIN
    )
    model, info = loaded
    wrong = ", ".join(f"{kind} {sorted(names)}" for kind, names in info.items() if names)
    with torch.no_grad():
        return compute(model, {name: torch.from_numpy(array) for name, array in given.items()}).numpy(), wrong
