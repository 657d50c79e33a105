"""The tour: a notebook that is executed by this program, and shown on the site with its outputs.

    python docs/hooks/tour.py

executes `docs/tour.py`, which is the text to edit, and writes `docs/tour.ipynb`. The site's build makes the page Tour
from that notebook, pictures included.
"""

import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
SCRIPT, NOTEBOOK = DOCS / "tour.py", DOCS / "tour.ipynb"

CELL_TIMEOUT_S = 600


def execute(folder: Path):
    """Return the notebook of `SCRIPT` with its outputs, executed in `folder`.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell fails.
    """
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(SCRIPT)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # else random, and every execution would change the file
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources=where, record_timing=False
    )
    return client.execute()


def on_files(files, config):
    """Add the page of the tour and its pictures to those of the site."""
    import nbformat
    from mkdocs.structure.files import File
    from nbconvert import MarkdownExporter

    body, resources = MarkdownExporter().from_notebook_node(
        nbformat.read(NOTEBOOK, as_version=4), resources={"output_files_dir": "tour"}
    )
    where = "This page is a notebook: [download it](tour.ipynb), and open it in Jupyter or Colab.\n\n"
    title, _, rest = body.strip().partition("\n\n")
    files.append(File.generated(config, "tour.md", content=f"{title}\n\n{where}{rest}\n"))
    for name, picture in resources["outputs"].items():
        files.append(File.generated(config, name, content=picture))
    return files


def main() -> None:
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(execute(Path(folder)), NOTEBOOK)
    print(f"wrote {NOTEBOOK}, {NOTEBOOK.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
