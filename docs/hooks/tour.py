"""The tour: a notebook that is executed by this program, and shown on the site with its outputs.

    python docs/hooks/tour.py [NOTEBOOK]

executes `docs/tour.py`, which is the text to edit, and writes `docs/tour.ipynb`, or NOTEBOOK. The build of the site
makes the page Tour from `docs/tour.ipynb`, pictures included.
"""

import base64
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

    text, pictures = page(nbformat.read(NOTEBOOK, as_version=4))
    files.append(File.generated(config, "tour.md", content=text))
    for name, picture in pictures.items():
        files.append(File.generated(config, name, content=picture))
    return files


def page(notebook) -> tuple[str, dict[str, bytes]]:
    """Return an executed notebook as a Markdown text, and the pictures that this shows by their place in docs/."""
    parts, pictures = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            if output.output_type == "stream":
                parts.append(f"```text\n{output.text.rstrip()}\n```")
            elif "image/png" in output.data:
                name = f"tour/picture-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(output.data["image/png"])
                parts.append(f"![What the cell draws]({name})")
    parts.insert(1, "This page is a notebook: [download it](tour.ipynb), and open it in Jupyter or Colab.")
    return "\n\n".join(parts) + "\n", pictures


def main() -> None:
    import nbformat

    out = Path(sys.argv[1]) if sys.argv[1:] else NOTEBOOK
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(execute(Path(folder)), out)
    print(f"wrote {out}, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
