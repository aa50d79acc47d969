"""The report's page: style sheet and small pieces of HTML. Everything that comes in is escaped."""

from collections.abc import Sequence
from html import escape

from speechattn.evaluation.alignment import SPACE, Pair, operation

STYLE = """
:root { color-scheme: light; --ink:#1d2733; --muted:#667281; --line:#e3e7ec; --soft:#f5f7fa;
  --accent:#1f5fa8; --sub:#9a4a00; --sub-bg:#fdeedd; --del:#a3262a; --del-bg:#fbe5e5;
  --ins:#1d6b45; --ins-bg:#e0f3e8; }
* { box-sizing: border-box; }
body { margin:0; color:var(--ink); background:#fff; -webkit-text-size-adjust:100%;
  font:16px/1.55 system-ui,-apple-system,"Segoe UI","Noto Sans","Noto Sans CJK SC",sans-serif; }
main, header > div, footer { max-width:1120px; margin:0 auto; padding:0 24px; }
header { background:var(--soft); border-bottom:1px solid var(--line); padding:32px 0 20px; }
h1 { font-size:30px; line-height:1.2; margin:0 0 4px; letter-spacing:-.01em; }
h2 { font-size:23px; margin:56px 0 4px; padding-top:20px; border-top:1px solid var(--line);
  overflow-wrap:anywhere; }
main > section:first-child h2 { border-top:0; margin-top:20px; }
h3 { font-size:17px; margin:32px 0 8px; }
h4 { font-size:15px; margin:0; overflow-wrap:anywhere; }
p { margin:6px 0 12px; max-width:75ch; overflow-wrap:anywhere; }
.muted, figcaption, footer { color:var(--muted); font-size:14px; }
nav { margin-top:14px; display:flex; flex-wrap:wrap; gap:6px 18px; font-size:15px; }
a { color:var(--accent); text-decoration:none; } a:hover { text-decoration:underline; }
.note { border-left:4px solid #c88a12; background:#fff6e0; padding:10px 16px; margin:16px 0 0;
  border-radius:0 6px 6px 0; max-width:none; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; margin:8px 0; }
table.wide { width:100%; }
th { text-align:left; font-weight:600; font-size:13px; color:var(--muted); white-space:nowrap;
  border-bottom:1px solid #c8cfd8; }
th, td { padding:7px 12px 7px 0; vertical-align:baseline; }
td { border-bottom:1px solid var(--line); }
td:first-child { overflow-wrap:anywhere; min-width:7em; }
.num { text-align:right; white-space:nowrap; padding-left:12px; padding-right:0; }
.ci { color:var(--muted); font-size:14px; }
.rate { font-weight:650; }
td.range { width:190px; padding:0 0 0 20px; vertical-align:middle; } th.range { padding-left:20px; }
td.range svg { display:block; width:170px; height:22px; }
figure { margin:12px 0 20px; } figure svg { display:block; width:100%; height:auto; }
figure.picture svg { min-width:680px; }
figcaption { max-width:80ch; margin-top:4px; }
.columns { display:grid; grid-template-columns:minmax(0,1fr) auto; gap:0 48px; }
@media (max-width:820px) { .columns { grid-template-columns:minmax(0,1fr); } h1 { font-size:25px; }
  main, header > div, footer { padding:0 16px; } }
.utt { padding:12px 0; border-bottom:1px solid var(--line); }
.utt > div:first-child { display:flex; flex-wrap:wrap; gap:0 14px; align-items:baseline; }
.pairs { display:flex; flex-wrap:wrap; margin:6px 0 0 -3px; row-gap:8px; }
.pair { display:inline-flex; flex-direction:column; padding:1px 4px; border-radius:4px;
  min-width:.9em; max-width:100%; overflow-wrap:anywhere; line-height:1.4; }
.pair.tight { padding:1px 2px; }
.pair span { min-height:1.4em; } .pair .hyp { color:var(--muted); }
.S { background:var(--sub-bg); } .S .hyp { color:var(--sub); font-weight:650; }
.D { background:var(--del-bg); } .D .ref { color:var(--del); text-decoration:line-through; }
.I { background:var(--ins-bg); } .I .hyp { color:var(--ins); font-weight:650; }
.key .pair { display:inline; padding:1px 6px; } .key .pair + .pair { margin-left:8px; }
.detail { margin:20px 0 36px; } .detail p { margin:2px 0; }
details { margin:4px 0 12px; } summary { cursor:pointer; color:var(--accent); font-size:15px; }
footer { padding-top:24px; padding-bottom:48px; margin-top:48px; border-top:1px solid var(--line); }
@media print { .detail, .utt, figure { break-inside:avoid; } }
"""

KEY = (
    '<p class="key muted">reference above, hypothesis below: '
    '<span class="pair S"><span class="hyp">substituted</span></span>'
    '<span class="pair D"><span class="ref">deleted</span></span>'
    '<span class="pair I"><span class="hyp">inserted</span></span></p>'
)


def page(title: str, head: str, body: str, foot: str) -> str:
    """The whole document."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><div><h1>{escape(title)}</h1>{head}</div></header>
<main>{body}</main>
<footer>{foot}</footer>
</body>
</html>
"""


def note(text: str) -> str:
    """A banner."""
    return f'<p class="note" role="note">{escape(text)}</p>'


def table(headers: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], css: str = "") -> str:
    """A table in its own scroll box.

    Args:
        headers: (text, CSS class) of each column; the class goes to the column's cells too.
        rows: cells, already HTML.
        css: class of the table.
    """

    def cell(tag: str, content: str, css: str) -> str:
        return f'<{tag} class="{css}">{content}</{tag}>' if css else f"<{tag}>{content}</{tag}>"

    head = "".join(cell("th", escape(text), css) for text, css in headers)
    body = "".join(
        "<tr>"
        + "".join(cell("td", text, css) for text, (_, css) in zip(row, headers, strict=True))
        + "</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="{css}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def interval_bar(rate: float, low: float | None, high: float | None, scale: float) -> str:
    """A rate with its interval on an axis from 0 to `scale` percent, as a small SVG."""

    def x(percent: float) -> float:
        return round(4 + 162 * min(percent, scale) / scale, 1)

    parts = ['<line x1="4" y1="11" x2="166" y2="11" stroke="#e3e7ec" stroke-width="1"/>']
    if low is not None and high is not None:
        parts.append(
            f'<line x1="{x(low)}" y1="11" x2="{x(high)}" y2="11" stroke="#9cc1e4" '
            'stroke-width="6" stroke-linecap="round"/>'
        )
    parts.append(f'<circle cx="{x(rate)}" cy="11" r="4" fill="#1f5fa8"/>')
    return f'<svg viewBox="0 0 170 22" aria-hidden="true">{"".join(parts)}</svg>'


def alignment(pairs: Sequence[Pair], tight: bool) -> str:
    """Reference over hypothesis, pair by pair, errors coloured and marked.

    Args:
        pairs: an alignment.
        tight: whether the units are characters, which stand close.
    """
    spacing = " tight" if tight else ""
    items = []
    for pair in pairs:
        kind = operation(pair)
        reference, hypothesis = (SPACE if kind and u == " " else u for u in pair)
        items.append(
            f'<span class="pair{spacing}{" " + kind if kind else ""}">'
            f'<span class="ref">{escape(reference) or "&nbsp;"}</span>'
            f'<span class="hyp">{escape(hypothesis) or "&nbsp;"}</span></span>'
        )
    return f'<div class="pairs">{"".join(items)}</div>'


def figure(svg: str, caption: str, css: str = "picture") -> str:
    """A picture with its caption; it scrolls in its own box on a narrow screen."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{css}"><div class="scroll">{svg}</div>{below}</figure>'
