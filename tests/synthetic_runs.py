"""Folders as runs leave them, written without training."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from bigjax.config import Config
from bigjax.config.strict import fingerprint, from_dict, to_dict
from bigjax.run.json_files import dumps, write_json


def write_run(
    folder: Path,
    loss: float | None,
    *,
    seed: int = 0,
    params: float = 1e6,
    tokens: float | None = None,
    curve: bool = True,
    last: float | None = None,
    argv: tuple[str, ...] = (),
    **changes: dict[str, Any],
) -> Path:
    """Write the folder of a run that ended with held-out `loss`, or has no result if that is None.

    Args:
        tokens: that it read; what its config says, if None.
        curve: whether metrics were written; last: the last training loss among them.
        argv: of the command that made it.
        changes: fields by section.
    """
    train = {"seed": seed, "steps": 40, "global_batch_size": 4, **changes.pop("train", {})}
    cfg = from_dict(Config, {"train": train, **changes})
    steps, end = cfg.train.steps, 2.0 if loss is None or not np.isfinite(loss) else loss
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"config": to_dict(cfg), "fingerprint": fingerprint(cfg)})
    rows = []
    for step in range(1, (steps if loss is not None else steps // 2) + 1):
        row: dict[str, Any] = {"step": step, "time_s": 0.5 * step, "train/loss": end + 3 / step}
        rows.append(row | ({"eval/loss": end + 3.1 / step} if step % 4 == 0 else {}))
    if last is not None:
        rows[-1]["train/loss"] = last
    (folder / "metrics.jsonl").write_text("".join(dumps(row) + "\n" for row in rows if curve))
    if argv:
        write_json(folder / "environment.json", {"sessions": [{"argv": list(argv)}]})
    if loss is not None:
        tokens = tokens or steps * cfg.train.global_batch_size * cfg.data.seq_len
        counted = {"params_total": params, "params_non_embedding": 0.8 * params, "flops": 6 * params * tokens}
        result = {"fingerprint": fingerprint(cfg), "steps": steps, "tokens": tokens, **counted}
        write_json(folder / "result.json", result | {"train_loss": end, "eval_loss": loss, "wall_s": 0.5 * steps})
    return folder


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def page_data(page: Path) -> dict[str, Any]:
    """Return the data in a report's page."""
    text = page.read_text(encoding="utf-8").partition('<script id="data" type="application/json">')[2]
    return json.loads(text.partition("</script>")[0])
