"""Pictures in one style, and the HTML page that holds them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from string import Template
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from PIL import Image

# Inches and dots per inch. Narrow, with text of 8 points: on a phone's 360 px that is still read.
WIDTH, DPI = 5.4, 150

# Okabe and Ito's palette, which colour-blind readers can tell apart, the yellow left out: too pale for lines.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"  # beside the colours, for print in black and white
GREY = "0.45"

STYLE: Any = {  # of matplotlib
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
}


class Missing(LookupError):
    """A part of the report cannot be made; the message says why, in a sentence for the reader."""


class Picture(NamedTuple):
    """A picture of the report."""

    name: str  # of its file, without the suffix
    png: bytes
    alt: str  # what it shows, for who cannot see it
    title: str  # the caption's first sentence
    caption: str  # the rest of it: how to read the picture


def new_figure(height: float) -> Figure:
    """An empty figure of the common width and a height in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def render(figure: Figure, name: str, alt: str, title: str, caption: str) -> Picture:
    """The figure as a PNG of 256 colours, about a third of the size of one of all colours."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI, facecolor="white")
    reduced = Image.open(drawn).convert("RGB").quantize(256)
    packed = io.BytesIO()
    reduced.save(packed, "PNG", optimize=True)
    return Picture(name, packed.getvalue(), alt, title, caption)


def colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


class Section(NamedTuple):
    """A part of the page."""

    anchor: str
    title: str
    intro: Sequence[str]  # paragraphs before the pictures
    pictures: Sequence[Picture]
    missing: Sequence[str] = ()  # why something is not there, a sentence each
    steps: Sequence[str] = ()  # a numbered list; up to its first full stop, a step is its name


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 46rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 2px solid #0072b2; }
a { color: #005a8e; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 1rem 0; padding: 0; }
nav a { display: inline-block; padding: .35rem 0; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: .95rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #ddd;
  overflow-wrap: anywhere; }
th { font-weight: 600; }
th:first-child { min-width: 6.5rem; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1.5rem 0; }
figure img { display: block; width: 100%; max-width: 42rem; height: auto; margin: 0 auto; }
figcaption { margin-top: .5rem; font-size: .95rem; color: #333; }
.missing { margin: 1rem 0; padding: .6rem .9rem; border-left: 4px solid #d55e00; background: #fdf3ec;
  overflow-wrap: anywhere; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0; }
footer { margin-top: 2.5rem; border-top: 1px solid #ddd; font-size: .9rem; color: #444; }
@page { margin: 15mm; }
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  h2, dt, section > p { break-after: avoid; }
  figure, p, dd, tr { break-inside: avoid; }
  figure { margin: 5mm 0; }
  figure img { width: auto; max-width: 125mm; max-height: 180mm; }
  a { color: inherit; text-decoration: none; }
}
</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>$summary</p>
$tables
<nav aria-label="Parts of this page"><ul>
$links
</ul></nav>
</header>
<main>
$sections
</main>
<footer><p>$footer</p></footer>
</body>
</html>
""")


def write_page(
    *,
    title: str,
    summary: str,
    facts: Sequence[tuple[str, str]],
    results: Sequence[Sequence[str]],
    sections: Sequence[Section],
    words: Sequence[tuple[str, str]],
    footer: str,
) -> str:
    """The whole page. All texts are plain; what HTML would take for its own is escaped.

    Args:
        title, summary: at its head.
        facts: what the report is of, by name.
        results: rows of a table, its head first; none: no table.
        sections: its parts.
        words: that a newcomer may not know, with what they mean.
        footer: at its end.
    """
    tables = [table(facts, head=False)]
    if results:
        tables.append(table(results, head=True))
    anchors = [*((s.anchor, s.title) for s in sections), ("words", "Words")]
    return PAGE.substitute(
        title=escape(title),
        summary=escape(summary),
        tables="\n".join(tables),
        links="\n".join(f'<li><a href="#{anchor}">{escape(name)}</a></li>' for anchor, name in anchors),
        sections="\n".join([*map(section, sections), glossary(words)]),
        footer=escape(footer),
    )


def section(part: Section) -> str:
    lines = [f'<section id="{part.anchor}">', f"<h2>{escape(part.title)}</h2>"]
    lines += [f"<p>{escape(text)}</p>" for text in part.intro]
    if part.steps:
        items = [step.split(". ", 1) for step in part.steps]
        lines += [
            "<ol>",
            *(f"<li><strong>{escape(name)}.</strong> {escape(text)}</li>" for name, text in items),
            "</ol>",
        ]
    lines += [f'<p class="missing"><strong>Not here:</strong> {escape(why)}</p>' for why in part.missing]
    lines += [figure(picture) for picture in part.pictures]
    return "\n".join([*lines, "</section>"])


def figure(picture: Picture) -> str:
    source = f"data:image/png;base64,{base64.b64encode(picture.png).decode()}"
    return (
        f'<figure><img src="{source}" alt="{escape(picture.alt)}">\n'
        f"<figcaption><strong>{escape(picture.title)}</strong> "
        f"{escape(picture.caption)}</figcaption></figure>"
    )


def table(rows: Sequence[Sequence[str]], *, head: bool) -> str:
    """Rows of a table whose first cells are headings; with a `head`, the other cells are numbers."""
    number = ' class="number"' if head else ""
    lines = []
    for index, (first, *others) in enumerate(rows):
        kind = "th" if head and index == 0 else "td"
        scope = "col" if head and index == 0 else "row"
        cells = "".join(f"<{kind}{number}>{escape(cell)}</{kind}>" for cell in others)
        lines.append(f'<tr><th scope="{scope}">{escape(first)}</th>{cells}</tr>')
    return "\n".join(["<table>", *lines, "</table>"])


def glossary(words: Sequence[tuple[str, str]]) -> str:
    entries = "\n".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in words)
    return f'<section id="words">\n<h2>Words</h2>\n<dl>\n{entries}\n</dl>\n</section>'
