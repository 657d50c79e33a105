"""Pictures that programs of this project have made, beside the pages that show them."""

from pathlib import Path

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "studies" / "scaling"

PICTURES = ("isoflop.png", "mup_transfer.png")


def on_files(files, config):
    """Add the pictures of the study to the pages of concepts, as `concepts/NAME`."""
    from mkdocs.structure.files import File

    for name in PICTURES:
        files.append(File.generated(config, f"concepts/{name}", abs_src_path=str(STUDY / name)))
    return files
