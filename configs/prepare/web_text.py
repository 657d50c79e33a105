"""Which pages of a crawl are worth training on?

The steps of FineWeb (Penedo et al. 2024, section 3) in its order, on pages whose HTML is in the column `text`:

    python -m experiments.prepare --config=prepare/web_text --config.sources='jsonl:raw/*.jsonl' --out=prepared

Language identification comes after extraction, as markup is English; masking comes last, as it changes what is counted.
"""

from ml_collections import ConfigDict

from bigjax.prepare.pipeline import declare


def get_config() -> ConfigDict:
    """Return the preparation."""
    return declare(
        steps=(
            "html",
            "unicode",
            "language",
            "gopher_repetition",
            "gopher_quality",
            "c4",
            "fineweb",
            "exact_duplicates",
            "near_duplicates",
            "mask",
        ),
        language={"keep": ("en",)},
        # FineWeb leaves this rule of C4 out, as it alone removes about 30 % of the tokens (section 3.5).
        c4={"end_of_line": False},
    )
