"""Images that look like an earlier one, by perceptual hashes (Zauner 2010): the first is kept.

The hash is `imagehash`'s pHash, 64 signs of the lowest frequencies. Two hashes that differ in few bits agree wholly
in one of their bands, so that only those that share a band are compared.
"""

from dataclasses import dataclass

import numpy as np

from bigjax.config.fields import bounded
from bigjax.prepare import duplicates
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.images.readable import path_of
from bigjax.prepare.step import Arrays, Fitted, Record
from bigjax.prepare.words import mixed


@dataclass(frozen=True)
class NearImages:
    """What counts as alike."""

    max_distance: int = bounded(4, minimum=0, maximum=31)
    """Bits, of 64, in which the hashes of two images that are alike may differ."""


class _Hashes:
    def __init__(self, options: NearImages, cfg):
        del cfg
        try:
            import imagehash
        except ModuleNotFoundError:
            raise PrepareError("near_images needs imagehash: pip install 'bigjax[prepare]'") from None
        self.phash, self.bands = imagehash.phash, options.max_distance + 1
        self.sets = duplicates.Sets(self.bands)

    def add(self, place: int, record: Record) -> None:
        from PIL import Image

        with Image.open(path_of(record)) as image:
            bits = self.phash(image).hash.reshape(-1)
        # By the pigeonhole principle, d differing bits leave one of d + 1 bands as it is.
        parts = np.array_split(bits, self.bands)
        hashes = [int(np.packbits(np.pad(part, (64 - len(part), 0))).view(">u8")[0]) for part in parts]
        numbered = np.arange(self.bands, dtype=np.uint64) + np.uint64(1)
        packed = np.packbits(bits)
        self.sets.add(place, mixed(mixed(numbered) + np.array(hashes, np.uint64)), packed)

    def arrays(self) -> Arrays:
        return self.sets.arrays()


def _combine(observed: list[Arrays], options: NearImages, cfg) -> Arrays:
    del cfg
    return duplicates.near(observed, lambda a, b: int(np.bitwise_count(a ^ b).sum()) <= options.max_distance)


STEP = Fitted(
    observe=_Hashes,
    combine=_combine,
    build=lambda options, cfg, state: duplicates.dropping("alike", state),
    fields=NearImages,
)
