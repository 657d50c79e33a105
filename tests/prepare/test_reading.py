"""Shards of any size hold every record once, in order."""

import gzip
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigjax.prepare import reading
from bigjax.prepare.errors import PrepareError
from experiments.prepare import readers

LINES = st.lists(
    st.one_of(st.text(max_size=20).map(lambda text: json.dumps({"text": text})), st.just(""), st.just("  "))
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(1, 80))
def test_pieces_of_a_file_hold_its_lines_once(tmp_path, lines, end, last, size):
    path = tmp_path / "a.jsonl"
    path.write_bytes((end.join(lines) + end * last).encode())
    shards = reading.shards([("jsonl", path)], size)
    found = [record for shard in shards for _, record in reading.read(shard, readers())]
    assert found == [json.loads(line) for line in lines if line.strip()]
    pieces = [piece for shard in shards for piece in reading.digests(shard)]
    assert sum(piece["stop"] - piece["start"] for piece in pieces) == path.stat().st_size


def test_small_files_are_read_together_and_compressed_ones_whole(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text("x" * 30)
    (tmp_path / "z.jsonl").write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n' * 50))
    files = [("text", path) for path in sorted(tmp_path.glob("*.txt"))]
    assert [len(shard) for shard in reading.shards(files, 100)] == [3, 3, 3, 1]
    shards = reading.shards([("jsonl", tmp_path / "z.jsonl")], 10)
    assert len(shards) == 1
    assert len(list(reading.read(shards[0], readers()))) == 100


def test_half_a_surrogate_pair_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine \\\\ud83d"}\n{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(PrepareError, match="half a surrogate pair"):
        for shard in reading.shards([("jsonl", path)], 5):
            list(reading.read(shard, readers()))
