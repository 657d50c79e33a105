"""The pages of the documentation, their fenced blocks, and the commands in these."""

import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

from benchmarks.recorded import declared
from tests.commands import ROOT

DOCS = ROOT / "docs"

PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

SHELLS = ("sh", "bash", "shell")
"""Fences of these languages hold commands and comments only. From `console` lines with a prompt are taken, from others
those that look like a command."""

COMMAND = re.compile(r"(\$ )?([A-Z_]+=\S* )*(python3? -m|pip|pytest|bigjax) ")

FENCE = re.compile(r"^ *```([\w+-]*)([^\n]*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r'^ *--8<-- "([^":]+)(?::(\d+):(\d+))?"$', re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: where it stands, language, what is behind that, text as written and with what it includes."""

    page: Path
    line: int
    language: str
    options: str
    written: str
    text: str

    @property
    def name(self) -> str:
        """Return where the block stands."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, language, options.strip(), written, included(written))
        for found in FENCE.finditer(text)
        for language, options, written in [(found[1], found[2], textwrap.dedent(found[3]))]
    ]


def included(text: str) -> str:
    """Return a text with each line `--8<-- "FILE"` or `--8<-- "FILE:FIRST:LAST"` replaced by that file in docs/."""

    def content(found: re.Match) -> str:
        lines = (DOCS / found[1]).read_text().splitlines()
        return "\n".join(lines[int(found[2]) - 1 : int(found[3])] if found[2] else lines)

    return SNIPPET.sub(content, text)


def command_lines(language: str, text: str) -> list[str]:
    """Return the command lines of a block, those continued with a backslash joined."""
    lines = map(str.strip, re.sub(r"\\\n", " ", text).splitlines())
    return [
        line
        for line in lines
        if (COMMAND.match(line) and language != "console")
        or (line.startswith("$ ") and language == "console")
        or (line and not line.startswith("#") and language in SHELLS)
    ]


def split_commands(line: str) -> list[list[str]]:
    """Return the words of each command of a line, without prompt, variables and comment; `bigjax` as a module."""
    words = shlex.split(line.removeprefix("$ "), comments=True)
    found: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "||", "&", ";", "|"):
            found.append([])
        elif found[-1] or not re.fullmatch(r"[A-Z_]+=.*", word):
            found[-1].append(word)
    return [["python", "-m", *command] if command[:1] == ["bigjax"] else command for command in found if command]


def all_commands() -> list[list[str]]:
    """Return the words of every command that a page shows or a recording runs, each once."""
    lines = [line for page in PAGES for block in blocks(page) for line in command_lines(block.language, block.text)]
    lines += [command for recording in declared().values() for command in recording.commands]
    return [list(words) for words in dict.fromkeys(tuple(words) for line in lines for words in split_commands(line))]
