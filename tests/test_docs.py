"""README and the pages of docs: every link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.make import PROJECT

PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for target in targets:
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_every_page_is_named_in_readme_or_by_a_page_that_is() -> None:
    reached, new = set(), {PROJECT / "README.md"}
    while new:
        reached |= new
        links = {(page.parent / target).resolve() for page in new for target in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text())}
        new = links - reached
    assert {page for page in PAGES if page.parent.name == "docs"} <= reached
