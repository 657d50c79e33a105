"""Whether an exported folder is the model it was made from: transformers loads it, and its logits are compared."""

import dataclasses
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import models
from bigjax.config import ModelConfig
from bigjax.errors import UserError
from bigjax.run_folder import versions

ROWS, MAX_TOKENS = 2, 64
RELATIVE_TOLERANCE = 1e-4
"""Of the largest logit: what float32 leaves after some 100 layers of sums in another order."""


class VerificationError(UserError):
    """Transformers cannot load an exported folder, or computes something else from it."""

    exit_code = 4

    def __init__(self, message: str, found: dict[str, Any]):
        super().__init__(message)
        self.found = found


def verify(folder: Path, cfg: ModelConfig, params: Mapping[str, np.ndarray], specs: Any, dtype: str) -> dict[str, Any]:
    """Load `folder` with transformers and compare logits of random tokens with those of `params` in `dtype`.

    Both sides compute in float32.

    Returns:
      `verified`: True, or None with `reason` where there is no PyTorch; `max_logit_difference` and `tolerance`;
      `tokens`, the shape that was compared; `versions`.

    Raises:
      VerificationError: tensors are missing or unknown to transformers, or logits differ by more than the tolerance.
    """
    if find_spec("torch") is None:
        return {"verified": None, "reason": "PyTorch is not installed, so transformers could not load the folder"}
    shape = (ROWS, min(cfg.max_seq_len, MAX_TOKENS))
    tokens = np.random.default_rng(0).integers(0, cfg.vocab_size, shape)
    found = {"tokens": list(shape), "versions": versions(("transformers", "torch", "jax"))}
    try:
        theirs, wrong = _their_logits(folder, tokens)
    except Exception as error:  # whatever transformers raises means that the folder is of no use
        message = f"transformers cannot load {folder}: {error}"
        raise VerificationError(message, found | {"verified": False, "reason": message}) from error
    if wrong:
        message = f"transformers loads {folder} with {wrong}"
        raise VerificationError(message, found | {"verified": False, "reason": message})
    ours = _our_logits(cfg, params, specs, dtype, tokens)
    difference = float(np.abs(theirs - ours).max())
    tolerance = RELATIVE_TOLERANCE * max(1.0, float(np.abs(theirs).max()))
    found |= {"max_logit_difference": difference, "tolerance": tolerance}
    if not difference <= tolerance:
        message = f"transformers' logits from {folder} differ by {difference:.3g}, more than {tolerance:.3g}"
        raise VerificationError(message, found | {"verified": False, "reason": message})
    return {"verified": True, **found}


def _their_logits(folder: Path, tokens: np.ndarray) -> tuple[np.ndarray, str]:
    import torch
    import transformers

    # No bar for what takes a moment.
    transformers.utils.logging.disable_progress_bar()
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    model, info = loaded
    wrong = ", ".join(f"{kind} {sorted(names)}" for kind, names in info.items() if names)
    with torch.no_grad():
        return model(torch.from_numpy(tokens), use_cache=False).logits.numpy(), wrong


def _our_logits(
    cfg: ModelConfig, params: Mapping[str, np.ndarray], specs: Any, dtype: str, tokens: np.ndarray
) -> np.ndarray:
    plain = dataclasses.replace(cfg, dtype="float32", attention="reference", layers="scan", remat="none")
    model = models.build(plain)
    stored = [jnp.asarray(array.astype(jnp.dtype(dtype)).astype(np.float32)) for array in params.values()]
    tree = jax.tree.unflatten(jax.tree.structure(specs), stored)

    @jax.jit
    def logits(params, tokens):
        return model.family.logits(params, model.family.apply(params, tokens, plain)[0], plain)

    return np.asarray(logits(tree, tokens))
