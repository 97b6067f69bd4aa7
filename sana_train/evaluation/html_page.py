"""One static HTML file of a folder of results: opens from disk, without a server or a script.

Curves are pictures inside the file; films and pictures that the folder has are named beside it, so the page
goes where the folder goes.
"""

from __future__ import annotations

import base64
import html
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sana_train.evaluation.figure_style import new_figure, step_position, style_step_axis
from sana_train.utils.files import publish_file

_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933 }
body { max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin: 0 0 .5rem }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(520px, 100%), 1fr)); gap: 1.5rem }
section { border-top: 1px solid #e4e7eb; padding-top: .75rem; min-width: 0 }
section.wide { grid-column: 1 / -1 }
img, video { max-width: 100%; height: auto }
video { background: #e4e7eb; min-width: min(256px, 100%); margin-right: .5rem }
table { border-collapse: collapse }
td, th { padding: .1rem 1rem .1rem 0; vertical-align: top; text-align: left }
td:first-child, p.note { color: #7b8794 }
"""


def curves(series: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> str:
    """``name -> (steps, values)`` on one log-step axis, as an ``img`` that holds its own bytes."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "curves.png"
        with new_figure(5.6, 3.0, path, dpi=160) as figure:
            axes = figure.add_subplot()
            last = max(steps[-1] for steps, _ in series.values())
            for name, (steps, values) in series.items():
                marker = "o" if len(steps) < 30 else ""
                axes.plot(step_position(steps), values, label=name, marker=marker, markersize=3)
            style_step_axis(axes, last)
            axes.legend(fontsize=7, ncols=1 + len(series) // 6)
        data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(", ".join(series))}" src="data:image/png;base64,{data}">'


def picture(name: str) -> str:
    """An ``img`` of a file beside the page."""
    return f'<img alt="{html.escape(name)}" src="{html.escape(name, quote=True)}">'


def film(name: str) -> str:
    """A ``video`` of a file beside the page; it plays by itself, over and over, without sound."""
    how = "autoplay loop muted playsinline controls"
    return f'<video {how} src="{html.escape(name, quote=True)}"></video>'


def table(rows: Mapping[str, object]) -> str:
    """Two columns of text."""
    lines = (
        f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in rows.items()
    )
    return f"<table>{''.join(lines)}</table>"


def grid(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first one the head."""
    lines = (
        f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"
        for tag, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True)
    )
    return f"<table>{''.join(lines)}</table>"


def note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def write_page(
    path: Path, title: str, head: Sequence[str], sections: Sequence[tuple[str, str, bool]]
) -> None:
    """Publish the page.

    Args:
        head: what stands under the title.
        sections: (title, content, whether it takes the whole width) in order.
    """
    page = io.StringIO()
    page.write('<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">')
    page.write('<meta name="viewport" content="width=device-width, initial-scale=1">')
    page.write(f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n")
    page.write(f"<h1>{html.escape(title)}</h1>\n")
    page.writelines(f"{part}\n" for part in head)
    page.write("<main>\n")
    for name, content, is_wide in sections:
        width = ' class="wide"' if is_wide else ""
        page.write(f"<section{width}><h2>{html.escape(name)}</h2>\n{content}\n</section>\n")
    page.write("</main>\n</body>\n</html>\n")
    with publish_file(path) as scratch:
        scratch.write_text(page.getvalue(), encoding="utf-8")
