"""Local files opened for reading, those that are compressed as if they were not."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bigjax.data.errors import DataError

MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh91AY&SY": "bz2", b"\xfd7zXZ\x00": "xz"}
"""What a compressed file starts with. No UTF-8 starts with these bytes but bzip2's, ten that no text is likely to."""

READ = ("gzip", "zstd", "bz2")
"""What Arrow decompresses."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading its bytes; what is compressed with gzip, zstd or bzip2 is decompressed on the way.

    The name of the file does not matter, its first bytes do.

    Raises:
      DataError: it is compressed in another way, or what is compressed is damaged or cut short.
    """
    with path.open("rb") as file:
        start = file.read(max(map(len, MAGIC)))
        kind = next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)
        if kind is None:
            file.seek(0)
            yield file
            return
    if kind not in READ:
        raise DataError(f"{path} is compressed with {kind}: decompress it, or use one of {', '.join(READ)}")
    import pyarrow as pa

    try:
        with pa.input_stream(path, compression=kind) as stream, io.BufferedReader(stream) as file:
            yield file
    except OSError as error:
        raise DataError(f"{path} cannot be decompressed with {kind}: {error}") from None


def contents(path: Path) -> bytes:
    """Return all bytes of a file, decompressed as by `opened`."""
    with opened(path) as file:
        return file.read()
