"""The tour: notebook and text in step; executed anew in under 3 minutes, it says the same, and what it claims is so."""

import os
import re
import resource
import subprocess
import sys

import pytest

from benchmarks.recorded import differences
from bigjax.preflight.plan import defaults
from docs.hooks import tour
from tests.commands import ROOT
from tests.docs.pages import DOCS

jupytext = pytest.importorskip("jupytext", reason="needs the extra docs")
nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")

LIMIT_S = 180

FIRST_STEP = 1024 * 2**-24 * 5.6
"""What rounding may do to a loss near log(256): a float32 mean of 1,024 losses, every addition off by half a bit."""


def printed(notebook) -> list[str]:
    """Return all that the cells of a notebook print, line by line."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [line for output in outputs if output.output_type == "stream" for line in output.text.splitlines()]


def numbers(pattern: str, text: str) -> tuple[float, ...]:
    """Return the numbers that the groups of a pattern find in a text."""
    found = re.search(pattern, text, re.MULTILINE)
    assert found, f"{pattern} is not in\n{text}"
    return tuple(map(float, found.groups()))


def claims(lines: list[str]) -> None:
    """Check what the text of the tour says of its outputs."""
    text = "\n".join(lines)
    first, last = numbers(r"step 1: ([\d.]+), step 60: ([\d.]+)", text)
    assert abs(first - 5.545) < 0.1 and last < 3.5  # near log 256, and then far below it
    at_first, largest = numbers(r"step 1: (\S+) nats\nlargest of 60 steps: +(\S+) nats", text)
    assert at_first <= FIRST_STEP and largest < 1e-3  # a second seed changes a loss by 0.02
    assert "did you mean optim.lr?" in text and "on each device  (2, 8, 1, 16)" in text
    assert len(re.findall(r"^ +\d  d_model=\d+ +finished\b", text, re.MULTILINE)) == 8  # after the sweep, and again
    exponent, low, high = numbers(r"a = (\S+), 95 % interval \[(\S+), (\S+)\]", text)
    assert low < exponent < high < 0
    assert numbers(r"^FITS: (\S+) GiB of 16.00 GiB", text) <= (16 * defaults.ROOM,)
    assert "  model.attention = splash" in text and "  mesh.shard_sequence = " in text
    needed, saved = numbers(r"^DOES NOT FIT: needs (\S+) GiB .*\n.*splash\n  saves (\S+) GiB", text)
    assert saved < needed > 16


def test_the_notebook_is_the_text_with_outputs():
    text, notebook = jupytext.read(tour.SCRIPT), nbformat.read(tour.NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [[(cell.cell_type, cell.source) for cell in each.cells] for each in (text, notebook)]
    assert cells[0] == cells[1], "execute it again: python docs/hooks/tour.py"
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.jupytext.formats == text.metadata.jupytext.formats == "ipynb,py:percent"
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert tour.NOTEBOOK.stat().st_size < 400_000 and str(ROOT) not in tour.NOTEBOOK.read_text()
    claims(printed(notebook))


def test_its_links_lead_to_pages():
    links = re.findall(r"\]\(([^)#]+)", tour.SCRIPT.read_text())
    assert len(links) > 8 and [link for link in links if not (DOCS / link).is_file()] == []


@pytest.mark.exhaustive
def test_it_runs_in_three_minutes_and_says_the_same(tmp_path):
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "NPROC"))}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = [sys.executable, str(tour.DOCS / "hooks" / "tour.py"), "tour.ipynb"]
    done = subprocess.run(program, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert 10 < seconds < LIMIT_S  # of processors, which others may use, too
    now, stored = (nbformat.read(path, as_version=4) for path in (tmp_path / "tour.ipynb", tour.NOTEBOOK))
    claims(printed(now))
    kept = [
        [line for line in printed(each) if " nats" not in line] for each in (stored, now)
    ]  # rounding, a digit or two
    assert differences(*kept) == []
