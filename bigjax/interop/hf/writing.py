"""Weights to a Hugging Face folder, compared there with what they were."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import models
from bigjax.config import ModelConfig
from bigjax.interop.hf import files as hf_files
from bigjax.interop.hf import verify as hf_verify
from bigjax.interop.hf.architecture import Architecture, HuggingFaceError
from bigjax.interop.hf.bert import labels
from bigjax.interop.hf.config import CONFIG, export_config
from bigjax.interop.hf.files import Planned
from bigjax.interop.hf.tensors import Piece, tensor_shape, tensors_of, to_tensor
from bigjax.interop.hf.tokenizer import export_generation, export_tokenizer
from bigjax.params import names
from bigjax.run.json_files import write_json

REPORT = "bigjax_export.json"
MAX_SHARD_BYTES = 5 * 10**9


def check_exportable(cfg: ModelConfig, folder: Path) -> tuple[Architecture, dict[str, Any]]:
    """Return the architecture that holds a model and its `config.json`, or raise what `export_checkpoint` would."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HuggingFaceError(f"{folder} is not an empty folder: choose another for the export")
    return export_config(cfg)


def export_checkpoint(
    params: Any,
    cfg: ModelConfig,
    folder: Path,
    *,
    dtype: str | None = None,
    tokenizer_from: Path | None = None,
    started_from: Path | None = None,
    classes: Sequence[str] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Write a folder that transformers' `from_pretrained` reads, compare it with `params`, and say how it went.

    Args:
      params: on the host or on devices. dtype: of the tensors; None keeps that of each parameter.
      tokenizer_from: a folder whose tokenizer is written, too, with the special tokens of the model, and its
        `generation_config.json`, or that of `started_from`, or one with these tokens.
      classes: the names of the classes of a classifier, which are numbered otherwise.
      max_shard_bytes: files are no larger, unless a single tensor is.

    Returns:
      What is written to `bigjax_export.json`; see `hf_verify.verify`.

    Raises:
      HuggingFaceError: no architecture holds the model, or the folder is not empty.
      VerificationError: transformers computes something else from the folder.
    """
    architecture, values = check_exportable(cfg, folder)
    specs = models.build(cfg).specs
    tensors = tensors_of(architecture, specs)
    flat = {name: np.asarray(jax.device_get(array)) for name, array in names(params).items()}
    assert {name: array.shape for name, array in flat.items()} == {
        name: each.shape for name, each in names(specs).items()
    }
    dtypes = {param: np.dtype(jnp.dtype(dtype)) if dtype else array.dtype for param, array in flat.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stored = {str(each) for each in dtypes.values()}
        values |= {"dtype": stored.pop() if len(stored) == 1 else "float32", "use_cache": True}
        values |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # no token of another vocabulary
        values |= labels(classes) if classes and cfg.num_classes else {}
        special, copied = export_tokenizer(tokenizer_from, folder, cfg) if tokenizer_from else ({}, [])
        values |= special
        copied += export_generation([path for path in (tokenizer_from, started_from) if path], folder, special)
        # The weights, which take longest, after all that may be found wrong.
        planned = [_planned(name, pieces, flat, dtypes) for name, pieces in tensors.items()]
        files = hf_files.write_tensors(folder, planned, max_shard_bytes)
        write_json(folder / CONFIG, values)
    except OSError as error:
        raise HuggingFaceError(f"{folder} cannot be written: {error.strerror or error}") from error
    report = {
        "architecture": architecture.class_name,
        "parameters": sum(array.size for array in flat.values()),
        "dtype": values["dtype"],
        "files": [*files, *copied],
    }
    try:
        report |= hf_verify.verify(folder, architecture.class_name, cfg, flat, specs, values["dtype"])
    except hf_verify.VerificationError as error:
        write_json(folder / REPORT, report | error.found)
        raise
    write_json(folder / REPORT, report)
    return report


def _planned(
    name: str, pieces: list[Piece], params: Mapping[str, np.ndarray], dtypes: Mapping[str, np.dtype]
) -> Planned:
    dtype = np.result_type(*(dtypes[piece.param] for piece in pieces))
    return Planned(name, tensor_shape(pieces), dtype, lambda: to_tensor(pieces, params, dtype))
