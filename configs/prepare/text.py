"""Which of some documents that are text already are worth training on, whatever their language?

Repair of Unicode, Gopher's rules without its English stop words, and duplicates:

    python -m experiments.prepare --config=prepare/text --config.sources='text:raw/**/*.txt' --out=prepared
"""

from ml_collections import ConfigDict

from bigjax.prepare.pipeline import declare


def get_config() -> ConfigDict:
    """Return the preparation."""
    return declare(
        steps=("unicode", "gopher_repetition", "gopher_quality", "exact_duplicates", "near_duplicates"),
        gopher_quality={"min_stop_words": 0},
    )
