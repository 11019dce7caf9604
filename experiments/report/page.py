"""One static HTML page: text, tables and pictures that lie beside it. Nothing is loaded from anywhere else."""

import html
from collections.abc import Sequence
from pathlib import Path

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 5rem; background: #fff; color: #1f2328;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .6rem; padding-top: .6rem; border-top: 1px solid #d8dee4; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
p { max-width: 46rem; margin: .5rem 0 .8rem; }
nav ol { columns: 2; max-width: 46rem; margin: .8rem 0; padding-left: 1.4rem; }
a { color: #0b57a4; text-decoration: none; }
a:hover { text-decoration: underline; }
figure { margin: 1.2rem 0 1.6rem; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption, caption { color: #57606a; font-size: .88rem; line-height: 1.45; text-align: left; max-width: 46rem; }
figcaption { margin-top: .5rem; }
caption { caption-side: bottom; padding-top: .5rem; }
table { border-collapse: collapse; margin: 1rem 0 1.4rem; font-variant-numeric: tabular-nums; font-size: .94rem; }
th, td { padding: .32rem .9rem .32rem 0; text-align: right; border-bottom: 1px solid #eaeef2; vertical-align: top; }
th { font-weight: 600; border-bottom-color: #afb8c1; }
th:first-child, td:first-child { text-align: left; }
"""


class Page:
    """A page that is put together from top to bottom; what is said is plain text, and escaped here.

    Args:
      folder: for the page and its pictures; made when it is missing.
      title: of the page.
    """

    def __init__(self, folder: Path, title: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.title = folder, title
        self._parts: list[str] = []
        self._sections: list[str] = []

    def section(self, title: str) -> None:
        """Begins a section, which the table of contents lists."""
        self._sections.append(title)
        self._parts.append(f'<h2 id="s{len(self._sections)}">{html.escape(title)}</h2>')

    def heading(self, text: str) -> None:
        """Begins a part of a section."""
        self._parts.append(f"<h3>{html.escape(text)}</h3>")

    def say(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def picture(self, name: str, caption: str) -> Path:
        """A picture with what it shows; returns where the caller writes it, `name` in the page's folder."""
        alt = html.escape(caption.split(".")[0], quote=True)
        self._parts.append(
            f'<figure><img src="{html.escape(name, quote=True)}" alt="{alt}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
        return self.folder / name

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
        """A table; its first column holds names, the others numbers."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        below = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        self._parts.append(f"<table>{below}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def write(self, lines: Sequence[str]) -> Path:
        """Writes index.html with `lines` as its summary, and returns its path."""
        short = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        contents = "".join(f'<li><a href="#s{n}">{html.escape(s)}</a></li>' for n, s in enumerate(self._sections, 1))
        title = html.escape(self.title)
        path = self.folder / "index.html"
        path.write_text(
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title}</title><style>{_STYLE}</style></head>\n"
            f"<body><h1>{title}</h1><ul>{short}</ul><nav><ol>{contents}</ol></nav>\n"
            + "\n".join(self._parts)
            + "\n</body></html>\n",
            encoding="utf-8",
        )
        return path
