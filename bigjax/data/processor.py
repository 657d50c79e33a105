"""What turns records into numbers: a tokenizer for text, a scaler for tables, or what else a task brings."""

from pathlib import Path
from typing import Protocol

from bigjax.data.errors import DataError
from bigjax.paths import AnyPath, on_disk


class Processor(Protocol):
    """What a run keeps of how its records become numbers, so that others are read as those it was trained on.

    Attributes:
      digest: sha256 of all that the numbers depend on.
    """

    digest: str

    def save(self, folder: str | Path) -> None:
        """Write it into a folder, from which its task's `load_processor` reads it."""
        ...


def save_processor(processor: Processor, folder: str | AnyPath) -> None:
    """Write a processor into a folder, such as a run's.

    Raises:
      DataError: it cannot be written, as on a full disk.
    """
    try:
        with on_disk(folder) as place:
            place.mkdir(parents=True, exist_ok=True)
            processor.save(place)
    except OSError as error:
        raise DataError(f"the processor of records cannot be written to {folder}: {error.strerror}") from error
