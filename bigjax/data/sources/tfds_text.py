"""Prepare local text files as a TensorFlow Datasets dataset, without TensorFlow.

    python -m bigjax.data.sources.tfds_text --name=books --files='books/*.txt' --data_dir=prepared

writes `prepared/text_files/books/1.0.0`, which `data.sources=('tfds:text_files/books',)` reads when TFDS_DATA_DIR is
`prepared`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from bigjax.data.errors import DataError
from bigjax.data.sources.readers import find_files, read_text, relative_names


class TextFiles(tfds.core.GeneratorBasedBuilder):
    """A document per file; the splits and their globs come from the config's `splits`."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, splits: dict[str, str], **kwargs: Any):
        """Args:
        splits: split name -> glob of its files.
        **kwargs: as for `tfds.core.DatasetBuilder`.
        """
        self._split_globs = splits
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"name": tfds.features.Text(), "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, description="A document per local text file.")

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(glob) for split, glob in self._split_globs.items()}

    def _generate_examples(self, glob: str) -> Iterator[tuple[str, dict[str, str]]]:
        for name, path in relative_names(find_files(glob).files).items():
            for _, text in read_text(name, path):
                yield name, {"name": name, "text": text}


def prepare(name: str, splits: dict[str, str], data_dir: str | Path) -> Path:
    """Prepare text files as the dataset `text_files/NAME` under `data_dir`.

    Args:
      name: the name of the config.
      splits: split name -> glob of its files.
      data_dir: folder of prepared datasets, made if missing.

    Returns:
      The folder of the prepared version.

    Raises:
      DataError: TFDS could not find the name again, or it is prepared already; a glob matches nothing, or a file is
        empty or not UTF-8; nothing can be written there.
    """
    if not (name.isascii() and name.isidentifier()):
        raise DataError(f"--name={name!r} must be of letters, digits and underscores, for TFDS to find it")
    for glob in splits.values():
        find_files(glob)
    config = tfds.core.BuilderConfig(name=name, version="1.0.0")
    builder = TextFiles(splits=splits, config=config, data_dir=str(data_dir), file_format="array_record")
    folder = Path(builder.data_path)
    if folder.exists():  # which TFDS would leave as it is, whatever the files are now
        raise DataError(f"{folder} is prepared already: delete it, or choose another name")
    try:
        builder.download_and_prepare()
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror}") from error
    return folder


def main() -> None:
    """Read the command line and prepare one dataset with a `train` split."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--name", required=True, help="name of the dataset's config")
    parser.add_argument("--files", required=True, help="glob of text files, a document each")
    parser.add_argument("--data_dir", required=True, help="folder of prepared datasets")
    arguments = parser.parse_args()
    try:
        print(prepare(arguments.name, {"train": arguments.files}, arguments.data_dir))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(DataError.exit_code)


if __name__ == "__main__":
    main()
