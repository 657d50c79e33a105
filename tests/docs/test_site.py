"""The built site: it builds without a warning, loads nothing from elsewhere, and has a page for all that there is."""

import ast
import html
import importlib.util
import os
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bigjax.config import Config
from bigjax.config.fields import field_paths
from tests.commands import ROOT
from tests.docs.test_names import config_fields

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as the project's CI builds it."""
    place = tmp_path_factory.mktemp("site")
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return place


def headings(page: Path) -> set[str]:
    return {html.unescape(found) for found in re.findall(r'<h[1-6] id="([^"]+)"', page.read_text())}


def objects(site: Path) -> set[str]:
    """Return the names in the site's index of Python objects."""
    text = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    return {line.split()[0] for line in text.splitlines()}


def public_names() -> set[str]:
    found = set()
    for path in (ROOT / "bigjax").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                found.add(f"{module}.{node.name}")
                inside = node.body if isinstance(node, ast.ClassDef) else []
                methods = [each.name for each in inside if isinstance(each, ast.FunctionDef)]
                found |= {f"{module}.{node.name}.{name}" for name in methods if not name.startswith("_")}
    return found


def test_every_public_function_and_class_has_a_place(site):
    names = public_names()
    assert len(names) > 1000
    assert names - objects(site) == set()


def test_every_command_has_a_page(site):
    listed = subprocess.run([sys.executable, "-m", "bigjax", "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    commands = re.findall(r"^  (\w+)  ", listed, re.MULTILINE)
    checks = ("check-equivalence", "check-resume", "check-mup", "check-checkpoint", "check-data", "check-replay")
    assert len(commands) > 8
    missing = [name for name in (*commands, *checks) if not (site / "reference/commands" / f"{name}.html").is_file()]
    assert missing == []
    assert "--max_restarts" in (site / "reference" / "commands" / "train.html").read_text()


def test_every_config_field_has_a_place_and_a_meaning(site):
    fields = config_fields()
    assert set(field_paths(Config)) <= set(fields)
    pages = sorted((site / "reference" / "config").glob("*.html"))
    assert set(fields) - set().union(*map(headings, pages)) == set()
    texts = {page.stem: page.read_text() for page in pages}
    # The line on its type follows what a field means, so without a meaning it would stand right below the heading.
    bare = [
        name for text in texts.values() for name in re.findall(r'<h2 id="([\w.]+)">.*</h2>\n<p>[^<]*Default: ', text)
    ]
    assert bare == []


def test_every_named_config_has_a_page(site):
    folder = ROOT / "configs"
    names = [path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py") if path.stem != "__init__"]
    assert len(names) > 20
    missing = [name for name in names if not (site / "reference" / "configs" / f"{name}.html").is_file()]
    assert missing == []
    assert "llama:70b" in (site / "reference" / "configs" / "llama.html").read_text()


class Loaded(HTMLParser):
    """What a browser loads when it opens a page."""

    def __init__(self):
        super().__init__()
        self.places: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "modulepreload"):
            self.places.append(given.get("href") or "")
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed"):
            self.places.append(given.get("src") or "")


def test_a_page_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 80
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert [place for place in loaded.places if place.startswith(("http:", "https:", "//"))] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", sheet.read_text()), sheet
