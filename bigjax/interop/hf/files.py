"""The safetensors files of a Hugging Face folder: what is in them, reading and writing, one shard at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bigjax.errors import brief, listed
from bigjax.interop.hf.architecture import HuggingFaceError
from bigjax.interop.hf.config import read_json
from bigjax.run.json_files import write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}
"""Dtypes of weights, by their name in a safetensors file."""

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Stored(NamedTuple):
    """Where a tensor lies, its name there, and what the header of its file says about it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def stored_tensors(folder: str | Path) -> dict[str, Stored]:
    """Return every tensor of a folder by name, from the headers of its files.

    Raises:
      HuggingFaceError: there are no safetensors files, the index names a file outside the folder or none, a file is cut
        short, or a file lacks what the index says it has.
    """
    folder = Path(folder)
    if (folder / SINGLE).is_file():  # before shards that may be left from an earlier save, as transformers has it
        return _header(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _of_index(folder)
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise HuggingFaceError(
            f"{folder / pickles[0]} is a pickle, which can run code when it is read, and is refused: save the model "
            "as safetensors"
        )
    raise HuggingFaceError(f"{folder} has neither {SINGLE} nor {INDEX}")


def _of_index(folder: Path) -> dict[str, Stored]:
    place, content = folder / INDEX, read_json(folder / INDEX)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise HuggingFaceError(f"{place} has no weight_map from tensors to files")
    headers = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file or "\\" in file or file in ("", ".", ".."):
            raise HuggingFaceError(f"{place} names {brief(file)}, which is not a file of its folder")
        headers[file] = _header(folder / file)
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise HuggingFaceError(f"{folder / file} does not have {name}, which {INDEX} says it has")
    unlisted = [name for header in headers.values() for name in header if name not in weight_map]
    if unlisted:
        raise HuggingFaceError(f"{place} does not list {some(unlisted)}, which its files have")
    return {name: headers[file][name] for name, file in weight_map.items()}


def _header(path: Path) -> dict[str, Stored]:
    with _opened(path) as file:
        found = {}
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            view = file.get_slice(name)
            found[name] = Stored(path, name, tuple(view.get_shape()), view.get_dtype())
        return found


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "np")
    except FileNotFoundError:
        raise HuggingFaceError(f"{path} is missing") from None
    except (SafetensorError, OSError) as error:
        raise HuggingFaceError(f"{path} is damaged or cut short: {error}") from None


def read_tensors(tensors: Mapping[str, Stored]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor under the name that `tensors` gives it, file after file, one in memory at a time."""
    for path in sorted({stored.file for stored in tensors.values()}):
        with _opened(path) as file:
            for name, stored in tensors.items():
                if stored.file == path:
                    yield name, file.get_tensor(stored.name)


class Planned(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * self.dtype.itemsize


def write_tensors(folder: str | Path, tensors: Iterable[Planned], max_shard_bytes: int) -> list[str]:
    """Write tensors to as few files as `max_shard_bytes` allows, with an index if there are several; return them.

    A tensor larger than that has a file of its own.
    """
    folder = Path(folder)
    shards: list[list[Planned]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.size for other in shards[-1]) + tensor.size > max_shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    count = len(shards)
    files = [SINGLE] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for file, shard in zip(files, shards, strict=True):
        # transformers refuses a file that does not say which framework it is for.
        save_file({tensor.name: tensor.make() for tensor in shard}, folder / file, metadata={"format": "pt"})
    if count > 1:
        total = sum(tensor.size for shard in shards for tensor in shard)
        weight_map = {tensor.name: file for file, shard in zip(files, shards, strict=True) for tensor in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return files


def some(names: list[str], limit: int = 3) -> str:
    """Return the first of several names, and how many there are besides."""
    return listed(sorted(names), limit, width=200)
