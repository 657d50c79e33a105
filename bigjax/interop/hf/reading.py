"""From a Hugging Face folder to parameters: every tensor is accounted for before one is read."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from bigjax import models
from bigjax.config import ModelConfig
from bigjax.interop.hf import files as hf_files
from bigjax.interop.hf.architecture import Architecture, HuggingFaceError
from bigjax.interop.hf.config import ARCHITECTURES, CONFIG, PREFIX, Imported, disagreements, import_config
from bigjax.interop.hf.files import DTYPES, Stored
from bigjax.interop.hf.labels import same_head
from bigjax.interop.hf.tensors import Tensors, tensor_shape, tensors_of, to_params
from bigjax.params import names

TASK = "head/classes"
"""How the parameters of a head begin that are of no use to another task."""


def import_checkpoint(folder: str | Path) -> tuple[ModelConfig, Any]:
    """Return the model config of a Hugging Face folder and its parameters, as NumPy arrays in the dtype stored.

    In memory are the parameters and one tensor.

    Raises:
      HuggingFaceError: the folder has no safetensors, or an architecture or option that is not covered; a tensor is
        missing, unknown, cut short or of another shape or dtype than the config says.
    """
    folder = Path(folder)
    architecture, cfg = import_config(folder)
    specs = models.build(cfg).specs
    tensors = tensors_of(architecture, specs)
    found = _stored(folder, architecture, tensors)
    _check_names(folder, found, tensors, architecture)
    return cfg, unflatten_dict(_read(folder, tensors, found, names(specs)), sep="/")


def load_params(folder: str | Path, cfg: ModelConfig, abstract: Any, *, new_head: bool = False) -> Any:
    """Return the parameters of a folder on the shardings and in the dtypes of `abstract`, for a run of `cfg`.

    With `new_head` the folder's head may be for another task, or missing: then those parameters of the head are left
    out that it does not have, and the last layer, of classes, in any case.

    Raises:
      HuggingFaceError: as `import_checkpoint`, or `cfg` is another architecture; naming the fields.
    """
    folder = Path(folder)
    there = import_config(folder)
    if new_head and not same_head(there.model, cfg):
        params = _without_its_head(folder, there, cfg)
    else:
        check_same_model(folder, cfg)
        _, params = import_checkpoint(folder)

    def place(name: str, values: np.ndarray) -> jax.Array:
        wanted = names(abstract)[name]
        # Cast part by part, so that no second copy of the model is made on the host.
        part = lambda index: values[index].astype(wanted.dtype)  # noqa: E731
        return jax.make_array_from_callback(wanted.shape, wanted.sharding, part)

    return unflatten_dict({name: place(name, values) for name, values in names(params).items()}, sep="/")


def check_same_model(folder: str | Path, cfg: ModelConfig) -> None:
    """Raise HuggingFaceError unless the folder's architecture is that of `cfg`."""
    architecture, theirs = import_config(folder)
    differing = disagreements(theirs, cfg)
    if differing and not disagreements(_with_head_of(theirs, cfg), cfg):
        wanted = f"model.head={cfg.head!r}" + (f" with model.num_classes={cfg.num_classes}" if cfg.num_classes else "")
        raise HuggingFaceError(
            f"{folder} holds a {architecture.class_name}, whose head is not that of {wanted}: train a run with "
            f"--config.init_from={PREFIX}{folder} first"
        )
    _refuse_others(folder, differing)


def _refuse_others(folder: str | Path, differing: list[str]) -> None:
    if differing:
        listed = "\n".join(differing)
        raise HuggingFaceError(
            f"{folder} holds another model; --config={PREFIX}{folder} is a config for it. It differs in\n{listed}"
        )


def _with_head_of(theirs: ModelConfig, ours: ModelConfig) -> ModelConfig:
    return dataclasses.replace(theirs, head=ours.head, num_classes=ours.num_classes)


def _without_its_head(folder: Path, there: Imported, cfg: ModelConfig) -> Any:
    """Return the parameters that a folder has for a model of `cfg`, whose head is another."""
    _refuse_others(folder, disagreements(_with_head_of(there.model, cfg), cfg))
    kind = there.architecture.model_type
    of_kind = [each for each in ARCHITECTURES if each.model_type == kind]
    # A model whose head transformers does not have can still start below it.
    wanted = next((each for each in of_kind if each.fixed.get("head", "lm") == cfg.head), of_kind[0])
    specs = names(models.build(cfg).specs)
    tensors = tensors_of(wanted, {name: spec for name, spec in specs.items() if not name.startswith("head/")})
    found = _stored(folder, wanted, tensors)
    for name, spec in specs.items():
        if name.startswith("head/") and not name.startswith(TASK) and name in wanted.tensors:
            added = tensors_of(wanted, {name: spec})
            tensors |= added if added.keys() <= found.keys() else {}
    known = tensors_of(there.architecture, names(models.build(there.model).specs))
    bare = {f"{wanted.prefix}{name}" for name in known} | known.keys()
    others = {name: one for name, one in found.items() if name in tensors or name not in bare}
    _check_names(folder, others, tensors, wanted)
    taken = {piece.param for pieces in tensors.values() for piece in pieces}
    return unflatten_dict(_read(folder, tensors, found, {name: specs[name] for name in taken}), sep="/")


def _stored(folder: Path, architecture: Architecture, tensors: Tensors) -> dict[str, Stored]:
    """Return where the tensors of a folder lie, by their names in a whole model of today, without second copies."""
    stored = hf_files.stored_tensors(folder.expanduser())
    found = {architecture.today(name): each for name, each in stored.items()}
    if not any(name.startswith(architecture.prefix) for name in found):  # a checkpoint of the bare model
        apart = architecture.copies
        found = {name if name in apart else architecture.prefix + name: each for name, each in found.items()}
    for copy, param in architecture.copies.items():
        original = architecture.tensors.get(param)
        if copy not in found or copy in tensors:
            continue
        stored = found.pop(copy)
        if original in found:
            _check_copy(folder, architecture, copy, stored, str(original), found[str(original)])
        elif original is not None:  # who writes shared weights once, does it under either name
            found[str(original)] = stored
    return found


def _check_copy(
    folder: Path, architecture: Architecture, copy: str, stored: Stored, original: str, other: Stored
) -> None:
    """Raise HuggingFaceError unless a tensor that repeats another does."""
    pair = dict(hf_files.read_tensors({copy: stored, original: other}))
    if len({(array.shape, array.tobytes()) for array in pair.values()}) > 1:
        own = f': if it is a matrix of its own, set "tie_word_embeddings" to false in {CONFIG}'
        cure = own if copy == "lm_head.weight" else ""
        raise HuggingFaceError(
            f"{folder}: {copy} is not {original}, which it repeats in a {architecture.class_name} with this "
            f"{CONFIG}{cure}"
        )


def _check_names(folder: Path, found: Mapping[str, Stored], tensors: Tensors, architecture: Architecture) -> None:
    """Raise HuggingFaceError unless a folder has all the tensors, and no others but those without use."""
    missing = [name for name in tensors if name not in found]
    if missing:
        raise HuggingFaceError(f"{folder} lacks {hf_files.some(missing)}")
    extra = [name for name in found if name not in tensors and not re.fullmatch(architecture.unused, name)]
    if extra:
        raise HuggingFaceError(f"{folder} has, and the model does not, {hf_files.some(extra)}")


def _read(
    folder: Path, tensors: Tensors, found: Mapping[str, Stored], specs: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return the parameters `specs` by name, after comparing shapes and dtypes of their tensors with what they say."""
    dtypes: dict[str, np.dtype] = {}
    for name, pieces in tensors.items():
        stored = found[name]
        if stored.dtype not in DTYPES:
            raise HuggingFaceError(
                f"{stored.file}: {name} is {stored.dtype}, which is not covered, only {list(DTYPES)}"
            )
        wanted = tensor_shape(pieces)
        if stored.shape != wanted:
            raise HuggingFaceError(
                f"{stored.file}: {name} has {_clash(pieces[0].param, stored.shape, wanted)} by {CONFIG}"
            )
        for piece in pieces:
            dtype = DTYPES[stored.dtype]
            if dtypes.setdefault(piece.param, dtype) != dtype:
                raise HuggingFaceError(f"{folder}: {name} is {dtype}, but the same tensor of another layer is not")
    return to_params(tensors, specs, hf_files.read_tensors({name: found[name] for name in tensors}), dtypes)


def _clash(param: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if param in ("embed/tokens", "head/tokens") and shape[1:] == wanted[1:]:
        return f"a vocabulary of {shape[0]}, but vocab_size={wanted[0]}"
    return f"{shape}, not {wanted}"
