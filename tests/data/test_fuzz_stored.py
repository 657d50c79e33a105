"""Random damage to shards of tokens, their indices, manifests and tables: refused in a sentence, or read."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from bigjax import data
from bigjax.config import Config, strict
from bigjax.data.stored import megatron
from tests.data.test_stored import write_records, write_table
from tests.fuzzing import attempt, lengths, search, spoil_file

RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(0, 256, RNG.integers(1, 30)) for _ in range(12)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """The files of a sound corpus of each kind."""
    folder = tmp_path_factory.mktemp("sound")
    for number in range(2):
        megatron.write(folder / f"{number}.bin", DOCUMENTS[number::2], np.dtype(np.uint16))
    build(folder, "*.bin", folder)
    found = {"*.bin": {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}}
    tokens = np.concatenate(DOCUMENTS).astype("<u2")
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    found["?.bin"] = {"0.bin": header.tobytes() + tokens.tobytes(), "1.bin": header.tobytes() + tokens.tobytes()}
    found["0.bin"] = {"0.bin": tokens.tobytes()}
    write_table(folder / "a.parquet", DOCUMENTS)
    write_records(folder / "a.arecord", DOCUMENTS)
    return found | {f"*{name[1:]}": {name: (folder / name).read_bytes()} for name in ("a.parquet", "a.arecord")}


def build(folder: Path, pattern: str, cache: Path) -> data.TextData:
    fields = {"sources": [f"tokens:{folder}/{pattern}"], "seq_len": 8, "holdout": 0.2, "cache_dir": f"{cache}/cache"}
    mapping = {"model": {"vocab_size": 256, "d_model": 16, "num_heads": 2}, "data": fields}
    cfg = strict.from_dict(Config, mapping | {"train": {"global_batch_size": 2}})
    return data.build(cfg, slice(0, 2))


@lengths(60, 1500)
def test_stored_tokens(count, sound, record_property):
    def case(draws):
        pattern = draws.draw(st.sampled_from(sorted(sound)))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file, content in sound[pattern].items():
                (folder / file).write_bytes(content)
            if draws.draw(st.integers(0, 7)):
                spoil_file(draws.draw, folder / draws.draw(st.sampled_from(sorted(sound[pattern]))))
            before = {path.name for path in folder.iterdir()}
            with attempt():
                text = build(folder, pattern, folder)
                for batch in (text.train.batch(0), text.train.batch(7), *text.eval.batches(1)):
                    assert batch.arrays["tokens"].min() >= 0 and batch.arrays["tokens"].max() < 256
                    assert np.isfinite(batch.arrays["weights"]).all()
            # Nothing is written but the manifest and the cache, and nothing half.
            assert {path.name for path in folder.iterdir()} - before <= {"tokens-manifest.npy", "cache"}
            assert not list(folder.rglob("*.tmp"))

    search(count, case, st.data())
    record_property("fuzz_cases", count)
