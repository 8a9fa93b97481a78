"""A page that needs nothing but itself: no requests, styles and pictures inside."""

from collections.abc import Sequence
from html import escape

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1500px; padding: 0 1em;
       color: #1b1b1f; }
h1 { font-size: 1.6em; } h2 { margin-top: 2em; border-bottom: 1px solid #ccd; } h3 { margin: 1.2em 0 .3em; }
table { border-collapse: collapse; margin: .8em 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; border-bottom: 1px solid #e2e2ea; text-align: right; }
th { background: #f4f4f8; position: sticky; top: 0; } td:first-child, th:first-child { text-align: left; }
td.best { font-weight: 600; background: #eaf6ec; }
figure { display: inline-block; margin: 0 6px 10px 0; vertical-align: top; }
figcaption { font-size: 12px; color: #555; width: min-content; min-width: 100%; }
img { display: block; max-width: 100%; border-radius: 3px; }
.row { overflow-x: auto; white-space: nowrap; } .row figure { white-space: normal; }
.note { color: #555; max-width: 70em; } code { background: #f4f4f8; padding: 0 .25em; }
"""  # noqa: E501


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole page."""
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    """Return a heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def note(text: str) -> str:
    """Return a paragraph of plain words."""
    return f"<p class='note'>{escape(text)}</p>"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    best: Sequence[tuple[int, int]] = (),
) -> str:
    """Return a table.

    Args:
        head: Headings.
        rows: Cells as text.
        best: Row and column of cells to stress.
    """
    marked = set(best)
    lines = ["".join(f"<th>{escape(text)}</th>" for text in head)]
    for i, row in enumerate(rows):
        cells = [
            f"<td{' class=best' if (i, j) in marked else ''}>{escape(text)}</td>"
            for j, text in enumerate(row)
        ]
        lines.append("".join(cells))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def figure(uri: str, caption: str) -> str:
    """Return a picture with words under it."""
    return (
        f"<figure><img src='{uri}' alt='{escape(caption, quote=True)}'>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def strip(figures: Sequence[str]) -> str:
    """Return figures side by side, scrolled where they are too wide."""
    return "<div class='row'>" + "".join(figures) + "</div>"
