"""Steps carried out in this process, without files between them."""

from typing import Any

from bigjax.prepare.pipeline import Preparation, declare, resolved
from bigjax.prepare.step import Dropped, Fitted


def through(records: list[dict[str, Any]], steps: tuple[str, ...], **options: Any) -> list[dict[str, Any] | Dropped]:
    """Return what each record has become, or why it was dropped."""
    cfg: Preparation = resolved(declare(sources=("jsonl:x",), steps=steps, **options))
    found: list[Any] = [dict(record) for record in records]
    for name, step in cfg.loaded():
        given = cfg.options(name)
        left = [i for i, record in enumerate(found) if not isinstance(record, Dropped)]
        if isinstance(step, Fitted):
            shards = [left[: len(left) // 2], left[len(left) // 2 :]]
            observed = []
            for shard in shards:
                observer = step.observe(given, cfg)
                for i in shard:
                    observer.add(i, found[i])
                observed.append(observer.arrays())
            fitted = step.build(given, cfg, step.combine(observed, given, cfg))
            for i in left:
                found[i] = fitted(i, found[i])
        else:
            function = step.build(given, cfg)
            for i in left:
                found[i] = function(found[i])
    return found


def kept(found: list[dict[str, Any] | Dropped]) -> list[dict[str, Any]]:
    """Return the records that are left."""
    return [record for record in found if not isinstance(record, Dropped)]
