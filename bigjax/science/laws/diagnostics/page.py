"""A study of laws as one HTML page that opens from disk, without scripts and without a network."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from bigjax.run.json_files import write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .8rem .25rem 0; text-align: left; }
img { max-width: 100%; }
.doubt { background: #fdf3e7; border-left: 4px solid #c0392b; padding: .3rem .8rem; }
"""

DOUBTS = ("warning:", "note:", "skipped", "excluded")


def write(table: str, pictures: Sequence[str], folder: str | Path, title: str) -> None:
    """Write `index.html` of the tables of `fit.md` and of the pictures, SVG files in the folder, by name."""
    folder = Path(folder)
    images = "\n".join(
        f'<figure><img alt="{name}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode((folder / f"{name}.svg").read_bytes()).decode()}"></figure>'
        for name in pictures
    )
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{_body(table)}\n"
        f"<h2>Pictures</h2>\n{images}\n</body></html>\n"
    )
    write_text(folder / "index.html", page)


def _body(table: str) -> str:
    """Return paragraphs and tables, parted by empty lines, as HTML."""
    parts = []
    for block in table.strip().split("\n\n"):
        lines = block.split("\n")
        if lines[0].startswith("|"):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            head, *body = (row for row in rows if not set("".join(row)) <= {"-"})
            parts.append(f"<table><tr>{_cells('th', head)}</tr>")
            parts += [f"<tr>{_cells('td', row)}</tr>" for row in body]
            parts.append("</table>")
        else:
            kind = ' class="doubt"' if block.startswith(DOUBTS) else ""
            parts.append(f"<p{kind}>{'<br>'.join(map(html.escape, lines))}</p>")
    return "\n".join(parts)


def _cells(kind: str, row: Sequence[str]) -> str:
    return "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row)
