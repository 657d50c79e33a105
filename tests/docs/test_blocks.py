"""What the fenced blocks of the documentation hold: nothing typed that can be recorded, included or run."""

import ast
import json
import shutil
import tomllib

import pytest

from benchmarks.recorded import EXAMPLES, declared
from tests.commands import ROOT, Commands, shared_cache
from tests.docs.pages import PAGES, blocks

BLOCKS = [block for page in PAGES for block in blocks(page)]

LANGUAGES = ("bash", "console", "python", "text", "yaml", "json", "toml")

RECORDED = {name: recording.file.read_text().splitlines() for name, recording in declared().items()}


def named(chosen):
    return {"argvalues": chosen, "ids": [block.name for block in chosen]}


def is_excerpt(lines: list[str], whole: list[str]) -> bool:
    """Whether lines are those of a recording, without a gap but where `...` stands for what is left out."""
    at, gap = 0, True
    for line in lines:
        if line == "...":
            gap = True
            continue
        found = [number for number in range(at, len(whole)) if whole[number] == line][:1]
        if not found or (found[0] > at and not gap):
            return False
        at, gap = found[0] + 1, False
    return True


def test_what_an_excerpt_is():
    whole = ["# date", "$ a", "1", "2", "3"]
    assert is_excerpt(["$ a", "1", "...", "3"], whole)
    assert is_excerpt(whole, whole)
    assert not is_excerpt(["$ a", "2"], whole)
    assert not is_excerpt(["$ a", "...", "4"], whole)
    assert not is_excerpt(["2", "...", "1"], whole)


@pytest.mark.parametrize("block", **named(BLOCKS))
def test_a_block_names_its_language(block):
    assert block.language in LANGUAGES
    if block.language != "console":
        typed = [line for line in block.text.splitlines() if line.startswith("$ ")]
        assert not typed, "what a command says belongs into a block of `console`"


CONSOLE = [block for block in BLOCKS if block.language == "console"]


@pytest.mark.parametrize("block", **named(CONSOLE))
def test_what_a_command_says_is_recorded(block):
    lines = block.text.rstrip().splitlines()
    assert any(line.startswith("$ ") for line in lines)
    found = [name for name, recorded in RECORDED.items() if is_excerpt(lines, recorded)]
    assert found, "no recording in docs/recorded/ has these lines; `...` stands for what is left out"


def test_every_recording_is_declared_and_shown():
    files = {path.stem for path in (ROOT / "docs" / "recorded").glob("*.txt")}
    assert files == set(RECORDED)
    after = {recording.after for recording in declared().values()}
    shown = {name for name in RECORDED for block in CONSOLE if is_excerpt(block.text.splitlines(), RECORDED[name])}
    assert set(RECORDED) - shown - after == set()


FILES = [block for block in BLOCKS if "title=" in block.options]


@pytest.mark.parametrize("block", **named(FILES))
def test_a_file_that_is_shown_is_one_of_the_examples_or_of_the_project(block):
    name = block.options.partition('title="')[2].partition('"')[0]
    place = EXAMPLES / name if (EXAMPLES / name).is_file() else ROOT / name
    assert block.text.strip() in place.read_text()


PYTHON = [block for block in BLOCKS if block.language == "python" and "title=" not in block.options]


@pytest.mark.parametrize("block", **named([block for block in BLOCKS if block.language in ("python", "json", "toml")]))
def test_a_block_can_be_read(block):
    {"python": ast.parse, "json": json.loads, "toml": tomllib.loads}[block.language](block.text)


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}), ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs_from_its_first_line_to_its_last(page, tmp_path, tmp_path_factory):
    # A block that starts with a comment on what must be installed first is for those who have that.
    program = "\n".join(block.text for block in PYTHON if block.page == page if not block.text.startswith("# pip "))
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    (tmp_path / "of_a_page.py").write_text(program)
    Commands(shared_cache(tmp_path_factory)).run("of_a_page", cwd=tmp_path)
