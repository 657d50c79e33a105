"""Which images of a folder are whole, large enough, and unlike each other?

Each image becomes a record with its path, its size and as label its folder; a tenth of each is held out:

    python -m experiments.prepare --config=prepare/images --config.sources='images:photos/*/*.jpg' --out=prepared
"""

from ml_collections import ConfigDict

from bigjax.prepare.pipeline import declare


def get_config() -> ConfigDict:
    """Return the preparation."""
    return declare(steps=("readable", "near_images", "sides"), sides={"stratify": "label"})
