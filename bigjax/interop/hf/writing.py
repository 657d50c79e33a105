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
from bigjax.interop.hf import origin as hf_origin
from bigjax.interop.hf import verify as hf_verify
from bigjax.interop.hf.architecture import Architecture, HuggingFaceError
from bigjax.interop.hf.config import CONFIG, export_config, import_config
from bigjax.interop.hf.files import Planned
from bigjax.interop.hf.labels import write_labels
from bigjax.interop.hf.tensors import Piece, tensor_shape, tensors_of, to_tensor
from bigjax.interop.hf.tokenizer import Exported, export_generation, export_tokenizer, special_tokens
from bigjax.params import names
from bigjax.run.json_files import write_json

REPORT = "bigjax_export.json"
MAX_SHARD_BYTES = 5 * 10**9


def check_exportable(
    cfg: ModelConfig, folder: str | Path, origin: str | Path | None = None
) -> tuple[Architecture, dict[str, Any]]:
    """Return the architecture that holds a model and its `config.json`, or raise what `export_checkpoint` would.

    Where several hold it, it is that of `origin`, the folder that its weights came from.
    """
    origin = None if origin is None else Path(origin)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HuggingFaceError(f"{folder} is not an empty folder: choose another for the export")
    if not hf_origin.config_of(origin):
        return export_config(cfg)
    assert origin is not None
    architecture, values = export_config(cfg, import_config(origin).architecture)
    return architecture, hf_origin.carried(origin, architecture, cfg) | values


def export_checkpoint(
    params: Any,
    cfg: ModelConfig,
    folder: str | Path,
    *,
    dtype: str | None = None,
    tokenizer_from: str | Path | None = None,
    started_from: str | Path | None = None,
    classes: Sequence[str] = (),
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Write a folder that transformers' `from_pretrained` reads, compare it with `params`, and say how it went.

    Args:
      params: on the host or on devices. dtype: of the tensors; None keeps that of each parameter.
      tokenizer_from: a folder whose tokenizer is written, too, with what lies beside it.
      started_from: the Hugging Face folder, or the run, that the weights came from, by default `tokenizer_from` if
        it is one. What its `config.json` and `generation_config.json` say beside the model is carried along; without
        one there are the special tokens that the model was trained with.
      classes: the names of the classes of a classifier, which are otherwise those of `started_from`, or numbered.
      max_shard_bytes: files are no larger, unless a single tensor is.

    Returns:
      What is written to `bigjax_export.json`; see `hf_verify.verify`.

    Raises:
      HuggingFaceError: no architecture holds the model, or the folder is not empty.
      VerificationError: transformers computes something else from the folder.
    """
    folder, origin = Path(folder), hf_origin.origin_of(started_from) or hf_origin.origin_of(tokenizer_from)
    architecture, values = check_exportable(cfg, folder, origin)
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
        of_all = stored.pop() if len(stored) == 1 else "float32"
        values = {"use_cache": True} | values | {"dtype": of_all}
        values |= write_labels(classes) if classes and cfg.num_classes else {}
        tokens = export_tokenizer(Path(tokenizer_from), folder, cfg) if tokenizer_from else Exported({}, [])
        values |= special_tokens(tokens.special, origin, cfg)
        copied = [*tokens.files, *export_generation(origin, folder, tokens.special)]
        # The weights, which take longest, after all that may be found wrong.
        planned = [_planned(name, pieces, flat, dtypes) for name, pieces in tensors.items()]
        files = hf_files.write_tensors(folder, planned, max_shard_bytes)
        write_json(folder / CONFIG, values)
    except OSError as error:
        raise HuggingFaceError(f"{folder} cannot be written: {error.strerror or error}") from error
    report = {
        "architecture": architecture.class_name,
        "parameters": sum(array.size for array in flat.values()),
        "dtype": of_all,
        "files": [*files, *copied],
    }
    try:
        report |= hf_verify.verify(folder, architecture.class_name, cfg, flat, specs, of_all)
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
