"""What does a model gain on clean text when the pages that it is trained on are prepared first?

    python -m experiments.sweep --config=experiments/studies/prepared_text/training.py \\
        --workdir=runs/prepared_text/sweep

Two equal runs, of one model, batch and number of steps, with three seeds each: on the pages as they are, and prepared.
"""

from ml_collections import ConfigDict

from bigjax.config.strict import to_config_dict
from bigjax.science.sweeps import Adder, ablation, seeds

from ..scaling import family

FOLDER = "runs/prepared_text"

BUDGET = 3e11
"""FLOPs of a run."""

LEARNING_RATE = 3e-3
"""Below that of the scaling study, at which one seed in three is far worse in so few steps."""

ROWS = {"prepared": {"data.sources": (f"jsonl:{FOLDER}/prepared/data/*.jsonl",)}}


def get_config() -> ConfigDict:
    """Return the run on raw pages."""
    return to_config_dict(family.base())


def sweep(add: Adder) -> None:
    """Add the runs on raw pages and on prepared ones, with three seeds each."""
    raw = {"data.sources": (f"jsonl:{FOLDER}/raw.jsonl",), "data.eval_sources": (f"jsonl:{FOLDER}/clean.jsonl",)}
    model = {**family.point(4, BUDGET).values, "optim.lr": LEARNING_RATE}
    add(ablation({**model, **raw}, ROWS), seeds(3))
