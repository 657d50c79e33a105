"""Which pages of the crawl are worth training on?

    python -m experiments.prepare --config=experiments/studies/prepared_text/cleaning.py \\
        --config.sources=jsonl:runs/prepared_text/raw.jsonl --out=runs/prepared_text/prepared
"""

from ml_collections import ConfigDict

from bigjax.prepare.pipeline import declare


def get_config() -> ConfigDict:
    """Return the preparation."""
    steps = ("unicode", "gopher_repetition", "c4", "gopher_quality", "exact_duplicates", "near_duplicates")
    return declare(steps=steps)
