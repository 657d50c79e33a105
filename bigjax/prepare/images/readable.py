"""Images that can be decoded to the last row and are large enough; the others are dropped. Pillow decodes them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from bigjax.config.fields import bounded
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.step import Dropped, Record, Step


@dataclass(frozen=True)
class Readable:
    """The limits of the rules."""

    min_side: int = bounded(32, minimum=1)
    """Pixels of the shorter side, at least."""
    max_ratio: float = bounded(10.0, minimum=1)
    """The longer side over the shorter one, at most."""


def _build(options: Readable, cfg) -> Callable[[Record], Record | Dropped]:
    del cfg
    from PIL import Image

    def apply(record: Record) -> Record | Dropped:
        path = path_of(record)
        try:
            # Pillow warns of images that may be meant to fill the memory.
            with warnings.catch_warnings(action="error"), Image.open(path) as image:
                image.load()
                width, height, mode = *image.size, image.mode
        except FileNotFoundError:
            raise PrepareError(f"there is no image {path}") from None
        except Exception as error:
            return Dropped("damaged", f"{type(error).__name__}: {error}"[:200])
        if min(width, height) < options.min_side:
            return Dropped("tiny", f"{width} x {height}")
        if max(width, height) > options.max_ratio * min(width, height):
            return Dropped("too_long", f"{width} x {height}")
        return {**record, "width": width, "height": height, "mode": mode}

    return apply


def path_of(record: Record) -> str:
    """Return the path of an image.

    Raises:
      PrepareError: the record has none.
    """
    path = record.get("path")
    if not isinstance(path, str):
        raise PrepareError(f"there is no column 'path' with the file of an image, but {', '.join(list(record)[:10])}")
    return path


STEP = Step(_build, Readable, counted=("mode",))
