"""Which rows of a table can be learnt from, and which are held out?

Rows that repeat, a split, and missing values filled from the training side; columns are encoded and scaled where named:

    python -m experiments.prepare --config=prepare/table --config.sources='csv:adult.csv' --out=prepared \\
        --config.categories.columns=sex --config.scale.columns=age
"""

from ml_collections import ConfigDict

from bigjax.prepare.pipeline import declare


def get_config() -> ConfigDict:
    """Return the preparation."""
    return declare(
        steps=("exact_duplicates", "sides", "missing", "categories", "scale"),
    )
