"""Weights from Hugging Face folders and to them, safetensors only, bit for bit.

    cfg, params = import_checkpoint(Path("SmolLM2-135M"))
    report = export_checkpoint(params, cfg, Path("out"))

On the way, each idea has its file: `hf_architecture` (what a table says), `hf_gpt2`, `hf_llama`, `hf_gemma` (the
tables), `hf_config` (config.json), `hf_files` (safetensors), `hf_tensors` (names, shapes and order of numbers),
`hf_verify` (is what was exported the same model?). Another architecture is another table, and its line in
`hf_config.ARCHITECTURES`.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigjax import models
from bigjax.config import ModelConfig
from bigjax.data.tokenizers import ByteTokenizer, load_tokenizer
from bigjax.interop import hf_files, hf_verify
from bigjax.interop.hf_architecture import Architecture, HuggingFaceError
from bigjax.interop.hf_config import CONFIG, PREFIX, disagreements, export_config, import_config, read_json
from bigjax.interop.hf_files import DTYPES, Planned, Stored
from bigjax.interop.hf_tensors import Piece, Tensors, tensor_shape, tensors_of, to_params, to_tensor
from bigjax.json_files import write_json
from bigjax.params import names

REPORT = "bigjax_export.json"
MAX_SHARD_BYTES = 5 * 10**9
TOKENIZER_FILE, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TIED_HEAD = "lm_head.weight"


def import_checkpoint(folder: Path) -> tuple[ModelConfig, Any]:
    """Return the model config of a Hugging Face folder and its parameters, as NumPy arrays in the dtype stored.

    In memory are the parameters and one tensor.

    Raises:
      HuggingFaceError: the folder has no safetensors, or an architecture or option that is not covered; a tensor is
        missing, unknown, cut short or of another shape or dtype than the config says.
    """
    architecture, cfg = import_config(folder)
    specs = models.build(cfg).specs
    tensors = tensors_of(architecture, specs)
    stored = _checked(folder.expanduser(), architecture, cfg, tensors)
    dtypes: dict[str, np.dtype] = {}
    for name, pieces in tensors.items():
        for piece in pieces:
            dtype = DTYPES[stored[name].dtype]
            if dtypes.setdefault(piece.param, dtype) != dtype:
                raise HuggingFaceError(f"{folder}: {name} is {dtype}, but the same tensor of another layer is not")
    params = to_params(tensors, specs, hf_files.read_tensors(stored), dtypes)
    return cfg, jax.tree.unflatten(jax.tree.structure(specs), list(params.values()))


def _checked(folder: Path, architecture: Architecture, cfg: ModelConfig, tensors: Tensors) -> dict[str, Stored]:
    """Return where the tensors lie, after comparing names, shapes and dtypes with what the config says."""
    found = hf_files.stored_tensors(folder)
    if not any(name.startswith(architecture.prefix) for name in found):  # a checkpoint of the bare model
        found = {name if name == TIED_HEAD else architecture.prefix + name: each for name, each in found.items()}
    if cfg.tie_embeddings and TIED_HEAD in found:
        _check_tied(folder, found, architecture)
    missing = [name for name in tensors if name not in found]
    extra = [name for name in found if name not in tensors and not re.fullmatch(architecture.buffers, name)]
    for problem, listed in (("lacks", missing), ("has, and the model does not,", extra)):
        if listed:
            raise HuggingFaceError(f"{folder} {problem} {hf_files.some(listed)}")
    for name, pieces in tensors.items():
        shape, dtype = found[name].shape, found[name].dtype
        if dtype not in DTYPES:
            raise HuggingFaceError(f"{found[name].file}: {name} is {dtype}, which is not covered, only {list(DTYPES)}")
        wanted = tensor_shape(pieces)
        if shape != wanted:
            vocabulary = pieces[0].param in ("embed/tokens", "head/tokens") and shape[1:] == wanted[1:]
            clash = (
                f"a vocabulary of {shape[0]}, but vocab_size={wanted[0]}" if vocabulary else f"{shape}, not {wanted}"
            )
            raise HuggingFaceError(f"{found[name].file}: {name} has {clash} by {CONFIG}")
    return {name: found[name] for name in tensors}


def _check_tied(folder: Path, found: dict[str, Stored], architecture: Architecture) -> None:
    """Drop the second copy of a table that is the output matrix too, if it is one."""
    table = architecture.tensors["embed/tokens"]
    if table in found:
        pair = dict(hf_files.read_tensors({name: found[name] for name in (TIED_HEAD, str(table))}))
        if len({(array.shape, array.tobytes()) for array in pair.values()}) > 1:
            raise HuggingFaceError(f"{folder}: {TIED_HEAD} is not {table}, but {CONFIG} says that the two are tied")
        del found[TIED_HEAD]


def load_params(folder: Path, cfg: ModelConfig, abstract: Any) -> Any:
    """Return the parameters of a folder on the shardings and in the dtypes of `abstract`, for a run of `cfg`.

    Raises:
      HuggingFaceError: as `import_checkpoint`, or `cfg` is another architecture; naming the fields.
    """
    check_same_model(folder, cfg)
    _, params = import_checkpoint(folder)

    def place(wanted: jax.ShapeDtypeStruct, values: np.ndarray) -> jax.Array:
        # Cast part by part, so that no second copy of the model is made on the host.
        part = lambda index: values[index].astype(wanted.dtype)  # noqa: E731
        return jax.make_array_from_callback(wanted.shape, wanted.sharding, part)

    return jax.tree.map(place, abstract, params)


def check_same_model(folder: Path, cfg: ModelConfig) -> None:
    """Raise HuggingFaceError unless the folder's architecture is that of `cfg`."""
    differing = disagreements(import_config(folder).model, cfg)
    if differing:
        listed = "\n".join(differing)
        raise HuggingFaceError(
            f"{folder} holds another model; --config={PREFIX}{folder} is a config for it. It differs in\n{listed}"
        )


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
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, Any]:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` reads, compare it with `params`, and say how it went.

    Args:
      params: on the host or on devices. dtype: of the tensors; None keeps that of each parameter.
      tokenizer_from: a folder whose tokenizer files are copied.
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
        planned = [_planned(name, pieces, flat, dtypes) for name, pieces in tensors.items()]
        files = hf_files.write_tensors(folder, planned, max_shard_bytes)
        stored = {str(each) for each in dtypes.values()}
        values |= {"dtype": stored.pop() if len(stored) == 1 else "float32", "use_cache": True}
        values |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # no token of another vocabulary
        copied = _copy_tokenizer(tokenizer_from, folder, cfg, values)
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
        report |= hf_verify.verify(folder, cfg, flat, specs, values["dtype"])
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


def _copy_tokenizer(source: Path | None, folder: Path, cfg: ModelConfig, values: dict[str, Any]) -> list[str]:
    """Copy tokenizer files, and say in `values`, the config, which token ends a text; return the files."""
    if source is None or not (source / TOKENIZER_FILE).is_file():
        return []
    tokenizer = load_tokenizer(source)
    if isinstance(tokenizer, ByteTokenizer):  # no tokenizer.json that others know
        return []
    if tokenizer.vocab_size > cfg.vocab_size:
        raise HuggingFaceError(
            f"{source / TOKENIZER_FILE} has ids up to {tokenizer.vocab_size - 1}, but model.vocab_size={cfg.vocab_size}"
        )
    values |= {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id}
    shutil.copyfile(source / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    beside = source / TOKENIZER_CONFIG
    settings = read_json(beside) if beside.is_file() else {}
    # By the model's type alone, AutoTokenizer would put another family's vocabulary rules in the place of the file's.
    write_json(folder / TOKENIZER_CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    return [TOKENIZER_FILE, TOKENIZER_CONFIG]
