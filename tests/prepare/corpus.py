"""Documents to prepare, made from the packaged Shakespeare and a seed."""

import json
import random
from pathlib import Path

from bigjax.data.sources import shakespeare


def passages(count: int, words: int = 120) -> list[str]:
    """Return consecutive pieces of the plays, of so many words each."""
    found: list[str] = []
    for _, text in shakespeare.works():
        parts = text.split()
        found += [" ".join(parts[i : i + words]) for i in range(0, len(parts) - words, words)]
        if len(found) >= count:
            break
    return found[:count]


def planted(count: int, seed: int = 0) -> tuple[list[dict], set[int], set[int]]:
    """Return records, the ids of exact copies, and those of edited copies; the rest are different passages."""
    rng = random.Random(seed)
    texts = passages(count)
    records = [{"id": i, "text": text} for i, text in enumerate(texts)]
    exact = {count + i for i in range(count // 10)}
    edited = {2 * count + i for i in range(count // 4)}
    records += [{"id": i, "text": texts[rng.randrange(count)]} for i in sorted(exact)]
    for i in sorted(edited):
        words = texts[rng.randrange(count)].split()
        for at in rng.sample(range(len(words)), rng.choice((1, 2, 3, 6, 9, 12))):
            words[at] = f"word{rng.randrange(10**6)}"
        records.append({"id": i, "text": " ".join(words)})
    rng.shuffle(records)
    return records, exact, edited


def write_jsonl(path: Path, records: list[dict]) -> Path:
    """Write records a line each."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def read_folder(folder: Path) -> list[dict]:
    """Return the records of the files in a folder, in order."""
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
