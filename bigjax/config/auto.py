"""The fields of a run that can be `auto`, which only its devices resolve: `preflight.plan.defaults`."""

from typing import Any

from bigjax.config.run import Config, replaced

PLAIN: dict[str, Any] = {
    "model.attention": "reference",
    "model.remat": "none",
    "train.microbatches": 1,
    "train.loss_chunks": 1,
    "mesh.fsdp": 1,
    "mesh.shard_sequence": False,
}
"""What `auto` is on CPUs, and where no device is known, by the path of the field."""


def unresolved(cfg: Config) -> list[str]:
    """Return the paths of the fields that are `auto`, without attention where a family has none."""
    found = []
    for path in PLAIN:
        section, _, name = path.partition(".")
        if getattr(getattr(cfg, section), name) == "auto":
            found.append(path)
    return [path for path in found if path != "model.attention" or cfg.model.kind != "rnn"]


def plain(cfg: Config) -> Config:
    """Return a run with every `auto` as it is on CPUs."""
    return replaced(cfg, {path: PLAIN[path] for path in unresolved(cfg)})
