"""Duplicates: which of many records equal or resemble an earlier one, found from hashes alone.

Near duplicates are found by MinHash and locality-sensitive hashing (Broder 1997; Lee et al. 2022, section 4.2): two
texts are compared if all hashes of one band are equal, and then by the Jaccard index of their sets of n-grams,
exactly. A record is dropped only for an earlier one that is kept and as similar as asked, so that chains of
likenesses drop nothing by themselves.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np

from bigjax.prepare.step import Arrays, Dropped, Record
from bigjax.prepare.words import mixed

SURE = 0.99
"""The probability with which two texts that are just as similar as asked are compared."""


def bands(threshold: float, hashes: int) -> tuple[int, int]:
    """Return the number of bands and the hashes in each: as many as still find a share `SURE` at the threshold.

    Two texts of Jaccard index s agree in all r hashes of one of b bands with probability 1 - (1 - s^r)^b (Lee et al.
    2022, appendix A).
    """
    rows = 1
    while rows < hashes and found_at(threshold, hashes // (rows + 1), rows + 1) >= SURE:
        rows += 1
    return hashes // rows, rows


def found_at(similarity: float, bands: int, rows: int) -> float:
    """Return the probability that two texts of a Jaccard index are compared."""
    return 1 - (1 - similarity**rows) ** bands


@cache
def _functions(hashes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors, odd, and the summands of hash functions by multiply-shift (Dietzfelbinger et al. 1997)."""
    counter = np.arange(2 * hashes, dtype=np.uint64) + np.uint64(1)
    values = mixed(mixed(counter) + mixed(np.array([seed + 1], np.uint64)))
    return values[:hashes] | np.uint64(1), values[hashes:]


def signature(shingles: np.ndarray, hashes: int, seed: int = 0) -> np.ndarray:
    """Return the MinHash signature of a set of uint64 shingles: uint32 (hashes,)."""
    factors, summands = _functions(hashes, seed)
    lowest = np.full(hashes, 2**32 - 1, np.uint32)
    for start in range(0, len(shingles), 512):  # as much as stays in a processor's cache
        part = shingles[start : start + 512, None] * factors + summands
        np.minimum(lowest, (part.min(axis=0) >> np.uint64(32)).astype(np.uint32), out=lowest)
    return lowest


def band_hashes(lowest: np.ndarray, number: int, rows: int) -> np.ndarray:
    """Return a uint64 hash of each band of a signature, other ones for other bands."""
    parts = lowest[: number * rows].reshape(number, rows).astype(np.uint64)
    total = np.arange(number, dtype=np.uint64)
    for row in range(rows):
        total = mixed(total + np.uint64(row + 1)) + parts[:, row]
    return mixed(total)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Jaccard index of two sets, given as sorted arrays without repetitions."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both) if both else 0.0


class Sets:
    """The places, band hashes and shingles of records, an `Observer`'s part."""

    def __init__(self, number: int):
        self.places: list[int] = []
        self.bands: list[np.ndarray] = []
        self.sets: list[np.ndarray] = []
        self.number = number

    def add(self, place: int, hashes: np.ndarray, shingles: np.ndarray) -> None:
        """Add a record."""
        self.places.append(place)
        self.bands.append(hashes)
        self.sets.append(shingles)

    def arrays(self) -> Arrays:
        """Return all that was added."""
        return {
            "places": np.array(self.places, np.uint64),
            "bands": np.array(self.bands, np.uint64).reshape(len(self.places), self.number),
            "sets": np.concatenate(self.sets) if self.sets else np.zeros(0, np.uint32),
            "ends": np.cumsum([len(each) for each in self.sets], dtype=np.int64),
        }


def near(observed: Iterable[Arrays], similar: Callable[[np.ndarray, np.ndarray], bool]) -> Arrays:
    """Return the records that resemble an earlier one that is kept: their places, sorted, and those ones' places."""
    shards = list(observed)
    places = np.concatenate([shard["places"] for shard in shards])
    hashes = np.concatenate([shard["bands"] for shard in shards])
    if not len(places):
        return {"places": np.zeros(0, np.uint64), "of": np.zeros(0, np.uint64)}
    first = np.cumsum([0, *(len(shard["places"]) for shard in shards)])
    shared = np.zeros(hashes.shape, bool)
    for band in range(hashes.shape[1]):
        _, which, counts = np.unique(hashes[:, band], return_inverse=True, return_counts=True)
        shared[:, band] = counts[which] > 1

    def members(i: int) -> np.ndarray:
        at = int(np.searchsorted(first, i, side="right")) - 1
        ends, inside = shards[at]["ends"], i - first[at]
        return shards[at]["sets"][ends[inside - 1] if inside else 0 : ends[inside]]

    kept: dict[int, list[int]] = defaultdict(list)
    dropped, of = [], []
    for i in map(int, np.flatnonzero(shared.any(axis=1))):
        keys = [int(key) for key in hashes[i, shared[i]]]
        earlier = sorted({j for key in keys for j in kept.get(key, ())})
        mine = members(i)
        found = next((j for j in earlier if similar(mine, members(j))), None)
        if found is None:
            for key in keys:
                kept[key].append(i)
        else:
            dropped.append(places[i])
            of.append(places[found])
    return {"places": np.array(dropped, np.uint64), "of": np.array(of, np.uint64)}


def exact(observed: Iterable[Arrays]) -> Arrays:
    """Return the records whose hash an earlier one has: their places, sorted, and those of the first with that hash."""
    shards = list(observed)
    places = np.concatenate([shard["places"] for shard in shards])
    hashes = np.concatenate([shard["hashes"] for shard in shards])  # (records, 2): 128 bits
    _, first, which = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    original = first[which.reshape(-1)]
    repeated = original != np.arange(len(places))
    return {"places": places[repeated], "of": places[original[repeated]]}


def dropping(rule: str, state: Arrays) -> Callable[[int, Record], Record | Dropped]:
    """Return the function that drops the records whose places a state lists."""
    places, of = state["places"], state["of"]

    def apply(place: int, record: Record) -> Record | Dropped:
        at = int(np.searchsorted(places, np.uint64(place)))
        if at < len(places) and places[at] == place:
            return Dropped(rule, f"like {place_words(int(of[at]))}")
        return record

    return apply


def place_words(place: int) -> str:
    """Return a place in words."""
    return f"record {place & 0xFFFFFFFF:,} of shard {place >> 32:,}"
