"""Places of files, on a disk or in an object store, with the names of pathlib.

`as_path` makes a `pathlib.Path` of a path on a disk, as ever, and a `RemotePath` (`remote`) of a URL such as
`s3://BUCKET/RUN`, whose calls are repeated while the store does not answer (`retries`, `stores`). What both need and
pathlib lacks stands in `writing` (files that are whole or not there, files that one alone of many can make) and
`finding` (patterns, copies on the disk). Imports no JAX, and for paths on a disk no fsspec.
"""

from bigjax.paths.finding import fetched, fetched_folder, matching
from bigjax.paths.remote import AnyPath, RemotePath, as_path, is_remote
from bigjax.paths.retries import StoreError
from bigjax.paths.writing import Copied, create, on_disk, remove_tree, write_whole

__all__ = (
    "AnyPath",
    "Copied",
    "RemotePath",
    "StoreError",
    "as_path",
    "create",
    "fetched",
    "fetched_folder",
    "is_remote",
    "matching",
    "on_disk",
    "remove_tree",
    "write_whole",
)
