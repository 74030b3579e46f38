"""Matplotlib figures as inline SVG that follows the page, and as SVG and PNG files that stand alone.

Colours are drawn with stand-ins that become the page's CSS variables, so one picture serves both themes and print.
A figure is 340 points wide and its smallest text 11.5: that is 11 pixels on a phone of 360.
"""

from __future__ import annotations

import functools
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from probes.report.formatting import visible

INK, MUTED, RULE, NULL, PAPER = "#010101", "#5f6061", "#d1d2d3", "#e1e2e3", "#fefdfc"
DANGER, NEAR, OVER = "#fbe1d0", "#fdf0d2", "#dbeefa"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6000", "#010101")
"""Okabe and Ito's palette, its yellow, unreadable on white, replaced; markers and dashes tell the same."""
MARKERS = ("o", "X", "s", "D", "^", "v", "P", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    NULL: "--null",
    PAPER: "--paper",
    DANGER: "--danger-area",
    NEAR: "--near-area",
    OVER: "--over-area",
    **{colour: f"--series-{index}" for index, colour in enumerate(SERIES[:-1], start=1)},
}
"""Stand-in → CSS variable."""
POINTS_PER_INCH = 72
WIDTH = 340
"""Points; nearly the width of a phone's screen, so that text keeps its size there."""
LABEL = 11.5
"""Points; the smallest text."""
CHARACTER = 6.6
"""Points that a character takes on average, wide ones among them."""
LONGEST = 18
"""Characters of a name in a figure."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: searchable, small, in the page's font
    "text.parse_math": False,  # a cell's name may hold a dollar sign
    "figure.dpi": POINTS_PER_INCH,
    "font.size": 12,
    "axes.labelsize": LABEL,
    "xtick.labelsize": LABEL,
    "ytick.labelsize": LABEL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}
_TIP = "tip:"
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"font: (?:\w+ )?(?P<size>[\d.]+px)?[^;]*;?")


P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Plot:
    """A figure and what is to be seen in it.

    Attributes:
        figure: drawn by a function that is `styled`. Text in it has gone through `visible`.
        key: of this figure, unique on the page: ids and names of files are made from it.
        title: what a screen reader says first.
        said: what is to be seen, in words.
    """

    figure: Figure
    key: str
    title: str
    said: str

    @cached_property
    def svg(self) -> Markup:
        """The figure as an `<svg>` element for a page."""
        return inline(self.figure, self.key, self.title, self.said)

    def __html__(self) -> str:
        return self.svg

    def document(self) -> str:
        """The figure as an SVG file that needs no page, in light colours on white."""
        return standalone(self.figure, self.key, self.title, self.said)

    def image(self) -> bytes:
        """The figure as a PNG of twice the size that a page shows it at."""
        return png(self.figure)


class Picture(Figure):
    """A figure that a notebook shows, in a page's colours on white."""

    def _repr_png_(self) -> bytes:
        return png(self)


class Look(NamedTuple):
    """How one series is drawn, by colour, marker and dash."""

    color: str
    marker: str
    linestyle: Any


def look(index: int) -> Look:
    """The look of the index-th series; colours repeat after eight with another dash."""
    place = index % len(SERIES)
    return Look(SERIES[place], MARKERS[place], DASHES[(index + index // len(SERIES)) % len(DASHES)])


def tip(text: str) -> str:
    """The gid of an artist whose tooltip this is."""
    return _TIP + visible(text)


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw with the report's style, whatever the user's matplotlibrc says."""

    @functools.wraps(draw)
    def wrapper(*arguments: P.args, **options: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(_STYLE)
            return draw(*arguments, **options)

    return wrapper


def panel(
    width: int = WIDTH,
    height: int = 230,
    left: int = 52,
    right: int = 58,
    top: int = 12,
    bottom: int = 42,
) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; all in points."""
    figure = Picture(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH))
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    return figure, axes


def short(name: object) -> str:
    """A name as a figure shows it; of a long one the beginning and the end, where a cell is named."""
    shown = visible(str(name))
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST // 2 - 1]}…{shown[-LONGEST // 2 :]}"


def room(names: Sequence[object]) -> int:
    """Points that the longest of these names takes beside the axes."""
    return 16 + round(CHARACTER * max((len(short(name)) for name in names), default=0))


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions nearest to those wanted (least squares) in [low, high] that are at least `gap` apart.

    Order is kept; where there is no room for `gap`, they are evenly spaced.
    """
    if not wanted:
        return []
    order = np.argsort(wanted, kind="stable")
    steps = min(gap, (high - low) / max(len(wanted) - 1, 1)) * np.arange(len(wanted))
    placed = isotonic_regression(np.asarray(wanted, dtype=float)[order] - steps).x
    result = np.empty(len(wanted))
    result[order] = np.clip(placed, low, high - steps[-1]) + steps
    return result.tolist()


def name_points(axes: Axes, names: Sequence[str], points: Sequence[tuple[float, float]], looks: Sequence[Look]) -> None:
    """Names on the right of the axes, each with a thin line to its point; they never overlap. Set the limits first."""
    if not names:
        return
    to_display = axes.transData
    box = axes.get_window_extent()
    at = np.array([to_display.transform(point) for point in points])
    heights = spread(list(at[:, 1]), 14.0, box.y0 + 3, box.y1 - 3)
    for name, (x, y), height, style in zip(names, at, heights, looks, strict=True):
        inverse = axes.transAxes.inverted()
        start, end = (tuple(inverse.transform(at)) for at in ((x, y), (box.x1 + 7, height)))
        axes.annotate(
            short(name),
            xy=start,
            xytext=end,
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=LABEL,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": style.color, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 2},
        )


def inline(figure: Figure, key: str, title: str, description: str) -> Markup:
    """The figure as an `<svg>` element for a page, see `Plot`."""
    root = _tree(figure, key, _themed)
    named = {"class": "plot", "role": "img", "aria-labelledby": f"{key}-title {key}-desc"}
    root.attrib = {"viewBox": root.attrib["viewBox"]} | named
    _describe(root, key, title, description)
    return Markup(ET.tostring(root, encoding="unicode"))


def standalone(figure: Figure, key: str, title: str, description: str) -> str:
    """The figure as an SVG file, see `Plot`."""
    root = _tree(figure, key, lambda style: style)
    size = {name: root.attrib[name] for name in ("viewBox", "width", "height")}
    root.attrib = {"xmlns": _SVG[1:-1], "style": "background: white", **size}
    _describe(root, key, title, description)
    return ET.tostring(root, encoding="unicode", xml_declaration=True)


@styled
def png(figure: Figure) -> bytes:
    """The figure in light colours on white, twice as large as a page shows it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=2 * POINTS_PER_INCH, facecolor="white")
    return buffer.getvalue()


@styled
def _tree(figure: Figure, key: str, theme: Callable[[str], str]) -> ET.Element:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ET.fromstring(buffer.getvalue())
    _clean(root, theme)
    return root


def _describe(root: ET.Element, key: str, title: str, description: str) -> None:
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(tag, {"id": f"{key}-{tag}"})
        element.text = visible(text)
        root.insert(place, element)


def _clean(root: ET.Element, theme: Callable[[str], str]) -> None:
    """No namespaces, metadata, style sheet or unused ids, which would clash with the next figure's."""
    used = set(re.findall(r"url\(#([^)]+)\)", ET.tostring(root, encoding="unicode")))
    used |= {element.attrib[_HREF].removeprefix("#") for element in root.iter() if _HREF in element.attrib}
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        if _HREF in element.attrib:
            element.attrib["href"] = element.attrib.pop(_HREF)
        name = element.attrib.get("id", "")
        if name not in used:
            element.attrib.pop("id", None)
        if name.startswith(_TIP):
            tip = ET.Element("title")
            tip.text = name.removeprefix(_TIP)
            element.insert(0, tip)
        if "style" in element.attrib:
            element.attrib["style"] = theme(element.attrib["style"])
        if element.tag != "text" and not (element.text or "").strip():
            element.text = None
        element.tail = None


def _themed(style: str) -> str:
    """Colours of the page, and the page's font in the figure's size."""
    for stand_in, variable in VARIABLES.items():
        style = style.replace(stand_in, f"var({variable})")
    return _FONT.sub(lambda match: f"font-size: {match['size']};" if match["size"] else "", style).replace("; ", ";")
