"""The style of the report's pictures, and their conversion to SVG with live text.

Text stays text (`svg.fonttype` none): the browser's fonts have Chinese, matplotlib's does not.
Without pyplot, figures are plain objects that need no display.
"""

import io
import re
import warnings

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1d2733", "#6b7785", "#e3e7ec"
SERIES = ("#1f5fa8", "#c4572e", "#2f8a63", "#8a55a8", "#a88414", "#4b5563")
HEAT = LinearSegmentedColormap.from_list("heat", ["#f6f8fb", "#9cc1e4", "#1f5fa8", "#0b2545"])
BLANK_COLORS = LinearSegmentedColormap.from_list("blank", ["#fbfbfc", "#d5dae1"])
FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'Noto Sans CJK SC', sans-serif"
RC = {
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "image.composite_image": False,
    "svg.hashsalt": "speechattn",
}
WIDTH = 11.0  # inches of a full-width figure


def to_svg(figure: Figure) -> str:
    """Return a figure as an SVG element for HTML, without prologue and unused ids."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The browser has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        figure.savefig(buffer, format="svg", dpi=144, transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    # matplotlib lists its own families; font sizes stay.
    svg = re.sub(r"font: ([^;\"']*?px) [^;\"]*", rf"font: \1 {FONT}", svg)
    return re.sub(r"\n\s*\n+", "\n", svg)
