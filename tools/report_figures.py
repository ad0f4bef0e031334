"""The figures of a report: matplotlib drawings as inline SVG that follow the page's colours, and embedded pictures."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NEUTRAL", "Line", "colour", "curves", "embedded", "points", "violins"]

# matplotlib wants colours, the page has CSS variables that change with light and dark: stand-ins, replaced in the SVG.
INK, SOFT, RULE, CARD = "#010101", "#010102", "#010103", "#010104"
VARIABLES = {INK: "--ink", SOFT: "--soft", RULE: "--line", CARD: "--card"}
SERIES = 8
NEUTRAL = -1
POINTS = 150  # more cases than that are a cloud: the violin says it better
BANDS = 3  # more curves than that lie too close for bands around them
WIDTH = 1320  # of an embedded picture, pixels: as evaluation draws them


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        x: iterations since the chain began.
        y: (curves, iterations) one row a seed; the line is their mean, the band their range.
        series: colour.
        ends: where stages end, with their names.
    """

    x: np.ndarray
    y: np.ndarray
    series: int
    ends: tuple[tuple[float, str], ...] = ()


def colour(series: int) -> str:
    """Return the CSS colour of a series; ``NEUTRAL`` is grey."""
    return "var(--soft)" if series == NEUTRAL else f"var(--s{series % SERIES})"


def _stand_in(series: int) -> str:
    return SOFT if series == NEUTRAL else f"#0102{series % SERIES:02x}"


@contextmanager
def _drawing(width: float, height: float) -> Iterator[Figure]:
    """Yield a figure whose units are CSS pixels at its natural size; matplotlib's own settings stay as they are."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "text.parse_math": False,  # a dollar in a name is a dollar
        "font.size": 10.5,
        "font.family": "DejaVu Sans",  # for the layout; the page draws the text in its own
        "axes.facecolor": "none",
        "text.color": INK,
        "axes.labelcolor": SOFT,
        "axes.edgecolor": RULE,
        "axes.linewidth": 1,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": RULE,
        "grid.linewidth": 0.8,
        "xtick.color": RULE,
        "ytick.color": RULE,
        "xtick.labelcolor": SOFT,
        "ytick.labelcolor": SOFT,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "axes.unicode_minus": True,
        "path.simplify_threshold": 0.2,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        yield figure


def _svg(figure: Figure, name: str, label: str) -> str:
    """Return inline SVG: no prolog, no ids that meet another figure's, the page's colours and font."""
    import matplotlib as mpl

    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    # Groups keep no id; those of definitions hold the hash of the name, and so meet no other figure's.
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    # All cases of a violin look alike: say it once.
    text = re.sub(r'<use [^>]* style="([^"]*)"/>\s*(?:<use [^>]* style="\1"/>\s*)+', _together, text)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    text = re.sub(r"#0102([0-9a-f]{2})", lambda found: f"var(--s{int(found[1], 16)})", text)
    # A style element would reach the whole page; hundredths of a pixel are fine enough.
    text = re.sub(r"<style.*?</style>|<g/>|font-family: [^;]*; ", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*\n\s*", "\n", text)
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), text)
    opening = re.sub(r' (?:width|height|version|xmlns(?::xlink)?)="[^"]*"', "", text[: text.index(">")])
    return f'{opening} role="img" aria-label="{escape(label)}"{text[text.index(">") :]}'


def _together(found: re.Match[str]) -> str:
    style = f' style="{found[1]}"'
    return f"<g{style}>{found[0].replace(style, '')}</g>"


def violins(
    name: str, label: str, rows: Sequence[tuple[str, int, Sequence[float]]], limits: tuple[float, float]
) -> str:
    """Draw one violin a row, with quartiles, median and the cases themselves.

    Args:
        name: unique on the page.
        label: for people who do not see it.
        rows: (heading, series, one value a case) from top to bottom; rows without values are left out.
        limits: of the axis.
    """
    rows = [row for row in rows if len(row[2])]
    with _drawing(380, 44 + 42 * len(rows)) as figure:
        axes = figure.subplots()
        generator = np.random.default_rng(0)  # the scatter that keeps points apart
        for place, (_, series, values) in enumerate(rows):
            _violin(axes, place, np.asarray(values, float), _stand_in(series), generator)
        axes.set_yticks(range(len(rows)), [_wrapped(row[0]) for row in rows])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(*limits)
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=5)
        return _svg(figure, name, label)


def _violin(axes: Any, place: int, values: np.ndarray, shade: str, generator: np.random.Generator) -> None:
    from scipy.stats import gaussian_kde

    # Of values that are all alike there is no density to draw.
    if np.ptp(values) > 1e-9 * np.abs(values).max():
        grid = np.linspace(values.min(), values.max(), 80)
        density = gaussian_kde(values)(grid)
        half = 0.39 * density / density.max()
        axes.fill_between(grid, place - half, place + half, color=shade, alpha=0.28, linewidth=0)
    if len(values) <= POINTS:
        scatter = place + generator.uniform(-0.16, 0.16, len(values))
        axes.plot(values, scatter, "o", color=shade, markersize=3, markeredgewidth=0, alpha=0.75)
    low, middle, high = np.percentile(values, [25, 50, 75])
    axes.plot([low, high], [place, place], color=INK, linewidth=1.6, solid_capstyle="round")
    axes.plot([middle], [place], "o", color=CARD, markeredgecolor=INK, markeredgewidth=1.4, markersize=5.5)


def _wrapped(text: str, width: int = 22) -> str:
    """Break a long label; file-like names have no blanks to break at."""
    lines = [""]
    for word in re.split(r"(?<=[ _])", text):
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.strip() for line in lines[:3])


def curves(name: str, label: str, lines: Sequence[Line], height: float = 190) -> str:
    """Draw curves over iterations; the ends of stages are marked where all curves share them.

    Args:
        name: unique on the page.
        label: for people who do not see it.
        lines: what to draw.
        height: of the figure.
    """
    with _drawing(340, height) as figure:
        axes = figure.subplots()
        ends = {line.ends for line in lines if len(line.ends) > 1}
        if len(ends) == 1:
            _mark_stages(axes, next(iter(ends)))
        for line in lines:
            shade = _stand_in(line.series)
            if len(line.y) > 1 and len(lines) <= BANDS:
                axes.fill_between(line.x, line.y.min(0), line.y.max(0), color=shade, alpha=0.16, linewidth=0)
            # The second round of colours is dashed.
            dash = "-" if line.series < SERIES else (0, (4, 2))
            axes.plot(line.x, line.y.mean(0), color=shade, linewidth=1.4, linestyle=dash)
        axes.set_xlim(0, max(line.x[-1] for line in lines))
        axes.locator_params(axis="y", nbins=4)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(visible=False, axis="x")
        return _svg(figure, name, label)


def _mark_stages(axes: Any, ends: Sequence[tuple[float, str]]) -> None:
    start = 0.0
    for place, (end, _) in enumerate(ends, 1):
        if end != ends[-1][0]:
            axes.axvline(end, color=SOFT, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.text(
            (start + end) / 2,
            1.0,
            str(place),
            transform=axes.get_xaxis_transform(),
            color=SOFT,
            ha="center",
            va="bottom",
        )
        start = end


def points(
    name: str,
    label: str,
    series: Sequence[tuple[int, Sequence[tuple[float, float]]]],
    axis: tuple[str, str],
    zero: bool = False,
) -> str:
    """Draw points (x, y) of several series.

    Args:
        name: unique on the page.
        label: for people who do not see it.
        series: (colour, points).
        axis: labels of x and y.
        zero: draw a line at y = 0.
    """
    with _drawing(380, 256) as figure:
        axes = figure.subplots()
        if zero:
            axes.axhline(0, color=SOFT, linewidth=0.8)
        for number, values in series:
            x, y = np.asarray(values, float).reshape(-1, 2).T
            axes.plot(x, y, "o", color=_stand_in(number), markersize=7, markeredgecolor=CARD, markeredgewidth=1)
        axes.set_xlabel(axis[0])
        axes.set_ylabel(axis[1])
        axes.margins(0.1)
        axes.locator_params(nbins=5)
        return _svg(figure, name, label)


def embedded(path: Path, label: str, width: int = WIDTH) -> str:
    """Return an ``<img>`` that holds the picture itself, no wider than ``width`` pixels.

    Raises:
        InputError: the file is no picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as source:
            picture = source.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as a picture ({error}); expected a PNG") from error
    picture.thumbnail((width, 4 * width), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=80, method=4)
    content = base64.b64encode(stream.getvalue()).decode()
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="data:image/webp;base64,{content}" {size} alt="{escape(label)}" loading="lazy">'
