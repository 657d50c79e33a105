"""Does our code compute what transformers computes on PyTorch? One step of the same model with the same weights.

The weights are those of a Hugging Face folder, or random ones of a small config. Compared, in this order: the logits,
the losses, and the gradient of every parameter, in the order of the forward pass. Both sides compute in float32; the
bounds are those of `error_bounds`, as between two meshes. Rows are single documents with padding after them.

Legend: B batch, S sequence that is read, T sequence that is written, M masked positions, D model, V vocab.
"""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import params
from bigjax.config import Config, MeshConfig, OptimConfig, replace
from bigjax.errors import UserError
from bigjax.interop import hf
from bigjax.interop.hf.config import export_config, import_config
from bigjax.interop.hf.verify import PLAIN, VerificationError
from bigjax.preflight.equivalence import bounds
from bigjax.preflight.equivalence.compare import Check, Difference, Reference, judged
from bigjax.preflight.equivalence.observation import named_pieces, whole
from bigjax.tasks import Task, named_task, names_of

NAME = "PyTorch"
"""What stands where a mesh does in a `Check`."""

ROWS, MAX_TOKENS = 2, 64
"""The batch that a model of full size sees."""


class Output(NamedTuple):
    """The logits that a loss is of.

    Attributes:
      ours: `(stage, weights, batch)` to logits, and the sums of the sizes of their terms, of the same shape.
      theirs: `(model, batch)` to logits, as PyTorch's tensors.
    """

    ours: Callable[[Any, Any, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]]
    theirs: Callable[[Any, Mapping[str, Any]], Any]


def _next_tokens(stage: Any, weights: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    x_BSD, _ = stage.model.family.apply(weights, batch["tokens"], stage.cfg.model, layout=stage.layout)
    return _from_states(stage, weights, x_BSD)


def _written(stage: Any, weights: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    rows = {"inputs_BT": batch["inputs"], "segments_BS": batch["segments"], "written_BT": batch["weights"]}
    family = stage.model.family
    return _from_states(stage, weights, family.apply(weights, batch["tokens"], stage.cfg.model, **rows)[0])


def _from_states(stage: Any, weights: Any, x_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
    cfg, family, layout = stage.cfg.model, stage.model.family, stage.layout
    sizes = _sizes(x_BSD, layout.whole(family.unembedding(weights, cfg, layout), "vocab", "embed"))
    return family.logits(weights, x_BSD, cfg, layout), sizes


def _masked_tokens(stage: Any, weights: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    cfg, family = stage.cfg.model, stage.model.family
    x_BSD = _encoded(stage, weights, batch)
    h_BMD = family.masked_states(weights, x_BSD, batch["masked"], cfg)
    sizes = _sizes(h_BMD, family.unembedding(weights, cfg, stage.layout)) + jnp.abs(weights["head"]["bias"])
    return family.masked_logits(weights, x_BSD, batch["masked"], cfg), sizes


def _row_classes(stage: Any, weights: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    cfg, family, head = stage.cfg.model, stage.model.family, weights["head"]
    x_BSD = _encoded(stage, weights, batch)
    sizes = _sizes(family.pooled(weights, x_BSD, cfg), head["classes"]) + jnp.abs(head["classes_bias"])
    return family.class_logits(weights, x_BSD, cfg), sizes


def _encoded(stage: Any, weights: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    rows = {"segments_BS": batch["segments"], "types_BS": batch.get("types")}
    return stage.model.family.apply(weights, batch["tokens"], stage.cfg.model, **rows)[0]


def _sizes(x: jax.Array, w_VD: jax.Array) -> jax.Array:
    return jnp.einsum("...D,VD->...V", jnp.abs(x), jnp.abs(w_VD))


def _their_next_tokens(model: Any, batch: Mapping[str, Any]) -> Any:
    return model(input_ids=batch["tokens"], use_cache=False).logits


def _their_written(model: Any, batch: Mapping[str, Any]) -> Any:
    read = {"input_ids": batch["tokens"], "attention_mask": batch["segments"].clamp(max=1)}
    return model(**read, decoder_input_ids=batch["inputs"], use_cache=False).logits


def _their_masked_tokens(model: Any, batch: Mapping[str, Any]) -> Any:
    return _their_encoded(model, batch).take_along_dim(batch["masked"][..., None], dim=1)


def _their_encoded(model: Any, batch: Mapping[str, Any]) -> Any:
    read = {"input_ids": batch["tokens"], "attention_mask": batch["segments"].clamp(max=1)}
    return model(**read, token_type_ids=batch.get("types")).logits


OUTPUTS = {
    ("decoder", "lm"): Output(_next_tokens, _their_next_tokens),
    ("encoder", "lm"): Output(_masked_tokens, _their_masked_tokens),
    ("encoder", "classification"): Output(_row_classes, _their_encoded),
    ("encdec", "lm"): Output(_written, _their_written),
}
"""By `model.family` and `model.head`, for tasks whose loss is the cross-entropy of these logits."""


def _comparable(task: Task) -> bool:
    return task.cross_entropy and any((family, task.head) in OUTPUTS for family in task.families)


def require() -> None:
    """Raise UserError where PyTorch is not installed."""
    if find_spec("torch") is None:
        raise UserError("--against compares with PyTorch, which is not installed: pip install torch")


def comparable(cfg: Config) -> Config:
    """Return `cfg` in float32, without what transformers' loss does not have: dropout, smoothing, losses beside it.

    Raises:
      UserError: its objective is not compared, or no covered Hugging Face architecture holds the model; naming the
        fields in which the nearest differs.
    """
    if not _comparable(named_task(cfg)):
        raise UserError(f"--against compares models that train for {names_of(_comparable)}, not {cfg.train.objective}")
    export_config(cfg.model)
    moe = dataclasses.replace(cfg.model.moe, jitter=0.0, aux_loss=0.0, z_loss=0.0)
    return replace(
        cfg,
        model={"dtype": "float32", "dropout": 0.0, "moe": moe},
        data={"document_mask": False},
        train={"label_smoothing": 0.0, "z_loss": 0.0},
    )


def of_folder(folder: str | Path, cfg: Config) -> tuple[Config, dict[str, np.ndarray]]:
    """Return a run of the model of a Hugging Face folder, as it is, on a small batch; and its weights in float32.

    Raises:
      HuggingFaceError: the folder cannot be read, or `cfg` is another model.
    """
    folder = Path(folder)
    hf.check_same_model(folder, cfg.model)
    model, weights = hf.import_checkpoint(folder)
    cfg = dataclasses.replace(
        cfg, model=model, optim=OptimConfig(name="sgd"), mesh=MeshConfig(), init_from=None, init_state=None
    )
    train = {"global_batch_size": ROWS, "microbatches": 1, "loss_chunks": 1}
    length = min(model.max_seq_len, MAX_TOKENS)
    written = {"target_len": length} if model.kind == "encdec" else {}
    cfg = replace(cfg, data={"seq_len": length, **written}, train=train)
    return cfg, {name: w.astype(np.float32) for name, w in params.names(weights).items()}


def compare(expected: Reference, folder: str | Path | None = None) -> Check:
    """Run transformers' model on the batch of `expected` and compare; with the weights of `folder`, or its own.

    `folder` must hold the weights that `expected` started from.
    """
    folder = None if folder is None else Path(folder)
    started = time.monotonic()
    check = Check(NAME, bounds.precision(expected.cfg), "same")
    with tempfile.TemporaryDirectory(prefix="bigjax-against-") as name:
        scratch = Path(name)
        if folder is None:
            folder = scratch / "model"
            _export(expected, folder)
        try:
            output = OUTPUTS[expected.cfg.model.family, expected.cfg.model.head]
            theirs = _theirs(folder, expected.batch, output, scratch / "gradients")
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
    """What transformers computes: logits `(B, ..., classes)`, the mean loss, gradients by our names."""

    logits: np.ndarray
    loss: np.ndarray
    grads: dict[str, np.ndarray]


def _theirs(folder: Path, batch: Mapping[str, np.ndarray], output: Output, scratch: Path) -> Theirs:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # no bar for what takes a moment
    kind: Any = getattr(transformers, import_config(folder).architecture.class_name)
    model = kind.from_pretrained(folder, dtype=torch.float32, **PLAIN).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # else the padding token's row gets no gradient where it is a token of the text
    given = {name: torch.from_numpy(array.astype(np.int64)) for name, array in batch.items() if name != "weights"}
    weights = torch.from_numpy(batch["weights"])
    logits = output.theirs(model, given)
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, -2), given["targets"].flatten(), reduction="none")
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
    """Return our logits and the 2-norm of the sizes of the terms that they are sums of."""
    stage = expected.stage
    output = OUTPUTS[expected.cfg.model.family, expected.cfg.model.head]

    def run(weights: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits, sizes = output.ours(stage, weights, batch)
        return logits, jnp.linalg.norm(sizes)

    batch = {name: jnp.asarray(array) for name, array in expected.batch.items()}
    with jax.set_mesh(stage.mesh):
        logits, size = jax.jit(run)(stage.place(expected.values), batch)
    return whole(named_pieces({"logits": logits})["logits"], logits.shape), float(size)
