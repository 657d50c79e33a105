"""Images that look like an earlier one, by perceptual hashes (Zauner 2010): the first is kept.

The hash is `imagehash`'s pHash, 64 signs of the lowest frequencies. Each image is compared with all that are kept.
"""

from dataclasses import dataclass

import numpy as np

from bigjax.config.fields import bounded
from bigjax.prepare import duplicates
from bigjax.prepare.errors import PrepareError
from bigjax.prepare.images.readable import path_of
from bigjax.prepare.step import Arrays, Fitted, Record


@dataclass(frozen=True)
class NearImages:
    """What counts as alike."""

    max_distance: int = bounded(8, minimum=0, maximum=31)
    """Bits, of 64, in which the hashes of two images that are alike may differ; those of unlike ones differ in 32."""


class _Hashes:
    def __init__(self, options: NearImages, cfg):
        del options, cfg
        try:
            import imagehash
        except ModuleNotFoundError:
            raise PrepareError("near_images needs imagehash: pip install 'bigjax[prepare]'") from None
        self.phash = imagehash.phash
        self.places: list[int] = []
        self.hashes: list[np.ndarray] = []

    def add(self, place: int, record: Record) -> None:
        from PIL import Image

        with Image.open(path_of(record)) as image:
            self.hashes.append(np.packbits(self.phash(image).hash.reshape(-1)))
        self.places.append(place)

    def arrays(self) -> Arrays:
        hashes = np.array(self.hashes, np.uint8).reshape(-1, 8).view(np.uint64)[:, 0]
        return {"places": np.array(self.places, np.uint64), "hashes": hashes}


def _combine(observed: list[Arrays], options: NearImages, cfg) -> Arrays:
    del cfg
    places, hashes = (np.concatenate([shard[name] for shard in observed]) for name in ("places", "hashes"))
    kept, count = np.zeros_like(hashes), 0
    kept_places = np.zeros_like(places)
    dropped, of = [], []
    for place, mine in zip(places, hashes, strict=True):
        near = np.flatnonzero(np.bitwise_count(kept[:count] ^ mine) <= options.max_distance)
        if len(near):
            dropped.append(place)
            of.append(kept_places[near[0]])
        else:
            kept[count], kept_places[count] = mine, place
            count += 1
    return {"places": np.array(dropped, np.uint64), "of": np.array(of, np.uint64)}


STEP = Fitted(
    observe=_Hashes,
    combine=_combine,
    build=lambda options, cfg, state: duplicates.dropping("alike", state),
    fields=NearImages,
)
