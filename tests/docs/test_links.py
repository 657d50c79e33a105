"""No link of the README leads nowhere; those between the pages of the site are checked when it is built."""

import re

import pytest

from tests.commands import ROOT
from tests.docs.pages import FENCE

LINKS = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<(?:img|a)[^>]* (?:src|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)

WRITTEN = [ROOT / "README.md", *sorted((ROOT / "experiments").rglob("*.md"))]


def anchors(text: str) -> set[str]:
    """Return the anchors that a Markdown text gets from its headings."""
    headings = HEADING.findall(FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_link_names_is_there(page):
    text = page.read_text()
    dead = []
    for link in (one or other for one, other in LINKS.findall(FENCE.sub("", text))):
        place, _, anchor = link.partition("#")
        if place.startswith(("https://", "http://", "mailto:")):
            continue
        file = (page.parent / place) if place else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file.read_text())):
            dead.append(link)
    assert dead == []
