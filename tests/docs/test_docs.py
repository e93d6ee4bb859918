"""Check that the documents agree with the code: messages, links, keys, and the modules that they name."""

from __future__ import annotations

import re

import pytest
from detectron2.config import CfgNode
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
def test_every_heading_that_a_link_names_exists(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        if "://" in target:
            continue
        linked = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", linked, flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_config_and_tool_that_a_page_names_exists(page):
    """By its path from the root."""
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:configs/[\w/]+\.(?:yaml|py)|tools/\w+\.py)", text):
        assert "NAME" in name or (ROOT / name).exists(), name  # NAME is for the reader to fill in


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_key_that_a_page_names_exists(page):
    from mgd_det.config import load_config

    cfg = load_config(str(ROOT / "configs/retinanet_r18_mgd.yaml"))
    # Of the methods that docs/extending.md has its reader write.
    cfg.DISTILL.ATTENTION = CfgNode({"TAPS": [], "WEIGHT": 1.0})
    cfg.DISTILL.DIRECTION = CfgNode({"TAPS": [], "WEIGHT": 1.0, "MARGIN": 0.1})
    keys = r"\b(?:DISTILL|MODEL|SOLVER|DATASETS|INPUT|TEST|DATALOADER)(?:\.[A-Z_0-9]+)+\b"
    for key in set(re.findall(keys, page.read_text(encoding="utf-8"))):
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def test_every_module_is_in_the_table_of_contributing():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = "\n".join(re.findall(r"^\| \d \|.*", text, flags=re.MULTILINE))
    for path in ROOT.glob("mgd_det/**/*.py"):
        if path.name != "__init__.py":
            name = "kernels/" if path.parent.name == "kernels" else path.stem
            assert f"`{name}`" in table, path
