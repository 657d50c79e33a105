"""Does our code compute what transformers computes on PyTorch? One step of the same model with the same weights.

The weights are those of a Hugging Face folder, or random ones of a small config. Compared, in this order: the logits,
the losses, and the gradient of every parameter, in the order of the forward pass. Both sides compute in float32; the
bounds are those of `error_bounds`, as between two meshes. Rows are single documents with padding after them.

Legend: B batch, S sequence, D model, V vocab.
"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import params
from bigjax.config import Config, MeshConfig, OptimConfig, replace
from bigjax.errors import UserError
from bigjax.interop import hf
from bigjax.interop.hf_config import export_config, import_config
from bigjax.interop.hf_verify import VerificationError
from bigjax.preflight.equivalence import Check, Difference, Reference, judged
from bigjax.preflight.observation import named_pieces, whole

NAME = "PyTorch"
"""What stands where a mesh does in a `Check`."""

ROWS, MAX_TOKENS = 2, 64
"""The batch that a model of full size sees."""

FAMILIES = ("decoder",)
"""Of which transformers' loss and ours are compared."""


def require() -> None:
    """Raise UserError where PyTorch is not installed."""
    if find_spec("torch") is None:
        raise UserError("--against compares with PyTorch, which is not installed: pip install torch")


def comparable(cfg: Config) -> Config:
    """Return `cfg` in float32, without what transformers' loss does not have: dropout, smoothing, losses beside it.

    Raises:
      UserError: its family is not compared, or no covered Hugging Face architecture holds the model; naming the fields
        in which the nearest differs.
    """
    if cfg.model.family not in FAMILIES:
        raise UserError(f"--against compares models of the family {' or '.join(FAMILIES)}, not {cfg.model.family}")
    export_config(cfg.model)
    moe = dataclasses.replace(cfg.model.moe, jitter=0.0, aux_loss=0.0, z_loss=0.0)
    return replace(
        cfg,
        model={"dtype": "float32", "dropout": 0.0, "moe": moe},
        data={"document_mask": False},
        train={"label_smoothing": 0.0, "z_loss": 0.0},
    )


def of_folder(folder: Path, cfg: Config) -> tuple[Config, dict[str, np.ndarray]]:
    """Return a run of the model of a Hugging Face folder, as it is, on a small batch; and its weights in float32.

    Raises:
      HuggingFaceError: the folder cannot be read, or `cfg` is another model.
    """
    hf.check_same_model(folder, cfg.model)
    model, weights = hf.import_checkpoint(folder)
    cfg = dataclasses.replace(cfg, model=model, optim=OptimConfig(name="sgd"), mesh=MeshConfig(), init_from=None)
    train = {"global_batch_size": ROWS, "microbatches": 1, "loss_chunks": 1}
    cfg = replace(cfg, data={"seq_len": min(model.max_seq_len, MAX_TOKENS)}, train=train)
    return cfg, {name: w.astype(np.float32) for name, w in params.names(weights).items()}


def compare(expected: Reference, folder: Path | None = None) -> Check:
    """Run transformers' model on the batch of `expected` and compare; with the weights of `folder`, or its own.

    `folder` must hold the weights that `expected` started from.
    """
    started = time.monotonic()
    check = Check(NAME, expected.cfg.model.dtype, "same")
    with tempfile.TemporaryDirectory(prefix="bigjax-against-") as name:
        scratch = Path(name)
        if folder is None:
            folder = scratch / "model"
            _export(expected, folder)
        try:
            theirs = _theirs(folder, expected.batch, scratch / "gradients")
        except Exception as error:  # whatever transformers raises is a finding about the folder
            reason = f"fails in transformers: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            return dataclasses.replace(check, status="fails", reason=reason, seconds=time.monotonic() - started)
    found = judged(check, _compared(expected, theirs))
    return dataclasses.replace(found, seconds=time.monotonic() - started)


def _export(expected: Reference, folder: Path) -> None:
    specs = expected.stage.model.specs
    tree = jax.tree.unflatten(jax.tree.structure(specs), [expected.values[name] for name in params.names(specs)])
    with contextlib.suppress(VerificationError):  # the folder is written; what differs in it is for us to find
        hf.export_checkpoint(tree, expected.cfg.model, folder)


@dataclasses.dataclass(frozen=True)
class Theirs:
    """What transformers computes: logits `(B, S, V)`, the mean loss, gradients by our names."""

    logits: np.ndarray
    loss: np.ndarray
    grads: dict[str, np.ndarray]


def _theirs(folder: Path, batch: Mapping[str, np.ndarray], scratch: Path) -> Theirs:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # no bar for what takes a moment
    kind: Any = getattr(transformers, import_config(folder).architecture.class_name)
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokens, targets = (torch.from_numpy(batch[name].astype(np.int64)) for name in ("tokens", "targets"))
    weights = torch.from_numpy(batch["weights"])
    logits = model(input_ids=tokens, use_cache=False).logits
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    loss = (nll * weights.flatten()).sum() / weights.sum()
    loss.backward()
    # transformers itself gives every gradient the name and the shape of its tensor: the model saved is made of them.
    with torch.no_grad():
        for w in model.parameters():
            w.copy_(torch.zeros_like(w) if w.grad is None else w.grad)
    model.save_pretrained(scratch)
    _, grads = hf.import_checkpoint(scratch)
    return Theirs(logits.detach().numpy(), loss.detach().numpy(), params.names(grads))


def _compared(expected: Reference, theirs: Theirs) -> Iterator[Difference]:
    """Yield every comparison, the first in the order of the computation first."""
    limits = expected.bounds
    logits, sizes = _logits(expected)
    yield Difference("output", "logits", float(np.linalg.norm(logits - theirs.logits)), limits.relative * sizes)
    loss = float(expected.losses["loss"])
    yield Difference("mean", "loss", abs(loss - float(theirs.loss)), limits.relative * abs(loss))
    allowed = expected.allowed()
    for name in expected.order:
        error = np.linalg.norm(theirs.grads[name].astype(np.float64) - expected.grads[name])
        yield Difference("gradient", name, float(error), allowed[name])


def _logits(expected: Reference) -> tuple[np.ndarray, float]:
    """Return our logits `(B, S, V)` and the 2-norm of the sizes of the terms that they are sums of."""
    stage, cfg = expected.stage, expected.cfg.model
    family, layout = stage.model.family, stage.layout

    def run(weights: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        x_BSD, _ = family.apply(weights, tokens, cfg, layout=layout)
        w_VD = family.unembedding(weights, cfg, layout)
        sizes = jnp.einsum("BSD,VD->BSV", jnp.abs(x_BSD), jnp.abs(w_VD))
        return family.logits(weights, x_BSD, cfg, layout), jnp.linalg.norm(sizes)

    with jax.set_mesh(stage.mesh):
        logits, size = jax.jit(run)(stage.place(expected.values), jnp.asarray(expected.batch["tokens"]))
    return whole(named_pieces({"logits": logits})["logits"], logits.shape), float(size)
