"""Prepared TensorFlow Datasets as text, read by random access without TensorFlow.

Only what lies prepared on disk is opened (in `TFDS_DATA_DIR`, else `~/tensorflow_datasets`, or the folder given):
a built-in builder would try to download and, without a network, hang for minutes before it fails.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.data.errors import DataError
from bigjax.data.sources.readers import decode, spelled

READABLE_FORMATS = ("array_record", "parquet")


def parse_name(spec: str) -> tuple[str, str]:
    """Split `NAME[:SPLIT]` into name and split, default `train`; a version such as `:1.0.0` belongs to the name."""
    match = re.fullmatch(r"(?P<name>[^:]+(:[\d*]+\.[\d*]+\.[\d*]+)?)(:(?P<split>.+))?", spec)
    if match is None:
        raise DataError(f"tfds:{spec} is not of the form tfds:NAME[/CONFIG][:VERSION][:SPLIT]")
    return match["name"], match["split"] or "train"


def open_builder(name: str) -> Any:
    """Open a prepared dataset by name or folder.

    Raises:
      DataError: nothing prepared under that name, a malformed name, or a format that needs TensorFlow.
    """
    import tensorflow_datasets as tfds
    from google.protobuf import json_format
    from tensorflow_datasets.core import read_only_builder, registered

    folder = Path(name).expanduser()
    try:
        if folder.is_absolute() and (folder / "dataset_info.json").is_file():
            builder = tfds.builder_from_directory(folder)
        elif folder.is_absolute():
            raise FileNotFoundError(folder / "dataset_info.json")
        else:
            builder = read_only_builder.builder_from_files(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except (registered.DatasetNotFoundError, FileNotFoundError) as error:
        raise DataError(
            f"tfds:{name} is not prepared on this machine: prepare it first (for local text files with "
            "`python -m bigjax.data.sources.tfds_text`), set TFDS_DATA_DIR to the folder that holds it, or give the "
            "folder of its version as an absolute path"
        ) from error
    except (ValueError, json_format.ParseError) as error:
        raise DataError(f"tfds:{name} cannot be opened: {str(error).partition(chr(10))[0]}") from error
    file_format = builder.info.file_format
    if file_format is None or file_format.value not in READABLE_FORMATS:
        raise DataError(
            f"tfds:{name} is prepared as {file_format.value if file_format else 'nothing'}, which needs TensorFlow: "
            f"prepare it with file_format={' or '.join(READABLE_FORMATS)}"
        )
    return builder


def open_split(spec: str, text_key: str) -> tuple[Any, str]:
    """Return the builder and split name that `NAME[:SPLIT]` stands for.

    Raises:
      DataError: as `open_builder`; or the split is unknown or empty, or there is no feature `text_key`.
    """
    name, split = parse_name(spec)
    builder = open_builder(name)
    if split not in builder.info.splits:
        raise DataError(f"tfds:{name} has no split {split!r}, only {', '.join(sorted(builder.info.splits))}")
    if builder.info.splits[split].num_examples == 0:
        raise DataError(f"tfds:{name}:{split} is empty: the split has no examples")
    features = sorted(builder.info.features)
    if text_key not in features:
        raise DataError(f"tfds:{name} has no feature data.text_key={text_key!r}, only {', '.join(map(repr, features))}")
    return builder, split


def split_files(builder: Any, split: str) -> list[Path]:
    """Return the files that hold a split."""
    return sorted(Path(file) for file in builder.info.splits[split].filepaths)


def read_tfds(
    builder: Any, split: str, text_key: str, labels: bool = False, chunk: int = 256
) -> Iterator[tuple[str, str]]:
    """Yield a document per example, in index order, fetched `chunk` at a time (one by one is four times slower).

    Args:
      labels: whether a value may be a whole number or a truth value, too.
    """
    place = f"tfds:{builder.name}:{split}"
    examples = builder.as_data_source(split=split)
    for start in range(0, len(examples), chunk):
        stop = min(start + chunk, len(examples))
        try:
            found = examples.__getitems__(range(start, stop))
        except (RuntimeError, ValueError) as error:  # what readers of records say of a damaged file
            raise DataError(f"{place} cannot be read: {str(error).partition(chr(10))[0]}") from error
        for index, example in enumerate(found, start):
            text = example[text_key]
            if labels and isinstance(text, int | bool | np.integer | np.bool_):
                text = spelled(text.item() if isinstance(text, np.generic) else text).encode()
            if not isinstance(text, bytes):
                kind = type(text).__name__
                raise DataError(f"{place}, example {index}: feature {text_key!r} is {kind}, not text")
            yield f"{split}:{index}", decode(text, f"{place}, example {index},")
