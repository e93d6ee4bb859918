"""The look of all pictures, and their form: PNG bytes with a text beside them."""

from __future__ import annotations

import io
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
