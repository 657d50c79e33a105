"""Checkpoints in an object store, where Orbax writes none but to Google's: it makes paths of every other URL.

A step folder holds, for every process that saved, `PROCESS/NUMBER.bin` and `PROCESS/chunks.json` (`blocks`); then
`checkpoint.json`, by process 0: the arrays, the chunks of all processes, and what was saved beside the state; last of
all `digests.json`, as on a disk. While a save or a removal is under way, `saving.json` lies beside them: it tells what
a kill has left from a checkpoint that has lost its digests. No object is ever renamed or appended to.
"""

import functools
import hashlib
import itertools
import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import jax
from jax import tree_util

from bigjax.checkpoint import blocks, digests
from bigjax.checkpoint.blocks import Chunk, DamagedCheckpoint
from bigjax.checkpoint.digests import SAVING
from bigjax.paths import RemotePath, create
from bigjax.run.json_files import write_json

CHECKPOINT, CHUNKS = "checkpoint.json", "chunks.json"

WAIT_S = 1800
"""How long a process waits for the others to have written their parts."""


class ObjectFiles:
    """Writes and removes the step folders of one run in an object store. Every process calls `start` alike."""

    def __init__(self, folder: RemotePath):
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, "save")
        self._attempts = itertools.count()
        self._opened = False

    def is_open(self) -> bool:
        """Return whether the folder is tidy since the last `close`."""
        return self._opened

    def open(self) -> None:
        self._opened = True

    def close(self) -> None:
        """Wait for a save under way."""
        self._thread.submit(int).result()
        self._opened = False

    def start(self, step: int, state: Any, beside: dict[str, Any]) -> "Future[None]":
        """Take a pytree of `jax.Array` off the devices, and write it from a thread; `finish` makes it complete."""
        arrays = named_arrays(state)
        described = {"arrays": [[list(path), str(x.dtype), list(x.shape)] for path, x in _leaves(state)], **beside}
        return self._thread.submit(self._write, step, next(self._attempts), blocks.own_shards(arrays), described)

    def _write(self, step: int, attempt: int, shards: Any, described: dict[str, Any]) -> None:
        folder, process = self._folder / str(step), jax.process_index()
        from orbax.checkpoint import multihost

        barrier = multihost.get_barrier_sync_fn()
        try:
            # One alone makes it, so that a save under way is seen before its first array.
            create(folder / SAVING, json.dumps({"process": process, "attempt": attempt}).encode())
            own = folder / f"{process:05d}"
            chunks, written = blocks.write(own, shards)
            write_json(own / CHUNKS, {"chunks": [asdict(chunk) for chunk in chunks], "objects": written})
            if process == 0:
                write_json(folder / CHECKPOINT, described)
        finally:  # the others wait for this process even if it failed, and find no chunks of it
            barrier(key=f"bigjax checkpoint {step}, {attempt}", timeout_ms=WAIT_S * 1000)

    def finish(self, step: int) -> None:
        """Make the step folder complete; process 0 calls this once all processes have written their parts.

        Raises:
            OSError: a process has not, or the digests cannot be written.
        """
        folder = self._folder / str(step)
        files, chunks = {}, {}
        for process in range(jax.process_count()):
            name = f"{process:05d}"
            try:
                data = (folder / name / CHUNKS).read_bytes()
            except FileNotFoundError:
                raise OSError(None, f"process {process} could not write its part") from None
            record = json.loads(data)
            files |= {f"{name}/{object_}": entry for object_, entry in record["objects"].items()}
            files[f"{name}/{CHUNKS}"] = _entry(data)
            chunks[name] = record["chunks"]
        described = json.loads((folder / CHECKPOINT).read_bytes()) | {"chunks": chunks}
        data = json.dumps(described).encode()
        (folder / CHECKPOINT).write_bytes(data)
        files[CHECKPOINT] = _entry(data)
        write_json(folder / digests.DIGESTS, {"step": step, "files": files})
        (folder / SAVING).unlink(missing_ok=True)

    def remove(self, step: int) -> None:
        """Remove a step folder; a kill half way leaves what `tidy` removes."""
        folder = self._folder / str(step)
        (folder / SAVING).write_bytes(b"{}")
        (folder / digests.DIGESTS).unlink(missing_ok=True)
        for path, _ in folder.files():
            if path.name != SAVING:
                path.unlink(missing_ok=True)
        (folder / SAVING).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what saves and removals that were cut short have left."""
        for step in set(digests.all_steps(self._folder)) - set(digests.complete_steps(self._folder)):
            if (self._folder / str(step) / SAVING).is_file():
                self.remove(step)


def described(folder: RemotePath) -> dict[str, Any]:
    """Return the `checkpoint.json` of a step folder.

    Raises:
        DamagedCheckpoint: it is missing, or not what was saved.
    """
    return _described(folder)[0]


def _described(folder: RemotePath) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `checkpoint.json` and what the digests say of every file."""
    try:
        files = json.loads((folder / digests.DIGESTS).read_bytes())["files"]
        data = (folder / CHECKPOINT).read_bytes()
        if _entry(data) != (saved := files[CHECKPOINT]):
            raise DamagedCheckpoint(f"{CHECKPOINT} has other bytes than the {saved['bytes']} that were saved")
        return json.loads(data), files
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{RemotePath(str(error.filename)).name} is missing") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{digests.DIGESTS} cannot be read: {error}") from None


def shapes(found: dict[str, Any]) -> dict[str, Any]:
    """Return the nested tree of the arrays in a `checkpoint.json`, as shapes and dtypes."""
    tree: dict[str, Any] = {}
    for path, dtype, shape in found["arrays"]:
        *above, name = path
        node = functools.reduce(lambda node, part: node.setdefault(part, {}), above, tree)
        node[name] = jax.ShapeDtypeStruct(tuple(shape), dtype)
    return tree


def load(folder: RemotePath, abstract: Any) -> Any:
    """Load those arrays of a step folder that `abstract` has onto its shardings, each device's part and no more.

    Raises:
        DamagedCheckpoint: what is needed of it is missing, or not what was saved.
        OSError: the store does not answer.
    """
    record, files = _described(folder)
    chunks = {process: [_chunk(found) for found in own] for process, own in record["chunks"].items()}
    dtypes = {"/".join(path): jax.numpy.dtype(dtype) for path, dtype, _ in record["arrays"]}
    leaves = dict(named_arrays(abstract))
    wanted: dict[tuple[str, Any], blocks.Wanted] = {}
    places: dict[str, list[tuple[Any, Any]]] = {}
    for name, leaf in leaves.items():
        for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
            bounds = tuple(slice(*part.indices(n)[:2]) for part, n in zip(index, leaf.shape, strict=True))
            key = tuple((part.start, part.stop) for part in bounds)
            wanted[name, key] = (name, bounds, tuple(part.stop - part.start for part in bounds))
            places.setdefault(name, []).append((device, key))
    read = blocks.Reader(folder, chunks, {name: entry for name, entry in files.items() if "blocks" in entry})
    values: dict[str, dict[Any, Any]] = {}
    arrays = {}
    for (name, bounds, _), found in read.read(list(wanted.values()), dtypes):
        values.setdefault(name, {})[tuple((part.start, part.stop) for part in bounds)] = found
        if len(values[name]) == len({key for _, key in places[name]}):  # all of it: the host lets go of it
            parts, leaf = values.pop(name), leaves[name]
            on_devices = [jax.device_put(parts[key], device) for device, key in places[name]]
            arrays[name] = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, on_devices)
    paths = [name for name, _ in named_leaves(abstract)]
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name in paths])


def named_arrays(tree: Any) -> dict[str, Any]:
    """Return the leaves of a pytree by name, with the same name for an attribute, a field and a key."""
    return dict(named_leaves(tree))


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Return name and leaf of a pytree in its own order."""
    return [("/".join(path), leaf) for path, leaf in _leaves(tree)]


def _leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    found = tree_util.tree_leaves_with_path(tree)
    return [(tuple(tree_util.keystr((entry,), simple=True) for entry in path), leaf) for path, leaf in found]


def _chunk(found: dict[str, Any]) -> Chunk:
    return Chunk(found["array"], tuple(found["start"]), tuple(found["shape"]), found["offset"], found["bytes"])


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
