"""What the documents say about the code is so."""

from __future__ import annotations

import re

import pytest
from helpers.commands import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/*.md")])


def source() -> str:
    """The package's code, with strings that go over several lines put together."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("mgd_det/**/*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", text)


def test_every_message_in_troubleshooting_is_one_of_the_code():
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE)
    assert len(messages) > 20
    code = source()
    assert [message for message in messages if message not in code] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_to_a_file_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_key_that_a_page_names_exists(page):
    from mgd_det.config import load_config

    cfg = load_config(str(ROOT / "configs/retinanet_r18_mgd.yaml"))
    for key in set(re.findall(r"\bDISTILL(?:\.[A-Z_]{2,})+\b", page.read_text(encoding="utf-8"))):
        if key.startswith(
            ("DISTILL.ATTENTION", "DISTILL.CWD")
        ):  # of methods that a page has its reader write
            continue
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]
