"""Reading a written report: as a parser sees it, and as a browser shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--log-level=0",
]


class Page(HTMLParser):
    """Tags, attributes, text and tables of a page.

    Attributes:
        tags: (name, attributes) of every element.
        text: all visible text, blanks collapsed.
        tables: of each table its class, its heading (the h3 before it) and rows of (classes, text).
        wrong: closing tags that close nothing.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.tables: list[tuple[str, str, list[list[tuple[str, str]]]]] = []
        self.wrong: list[str] = []
        self._open: list[str] = []
        self._pieces: list[str] = []
        self._heading = ""
        self.feed(html)
        self.close()
        self.wrong += self._open
        self.text = re.sub(r" (?=[:;,.])", "", " ".join("".join(self._pieces).split()))

    def handle_starttag(self, tag, attrs):
        attributes = {k: v or "" for k, v in attrs}
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "h3":
            self._heading = ""
        elif tag == "table":
            self.tables.append((attributes.get("class", ""), self._heading, []))
        elif tag == "tr":
            self.tables[-1][2].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][2][-1].append((attributes.get("class", ""), ""))
        elif tag == "br":
            self.handle_data(" ")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.wrong.append(tag)
        if tag in {"p", "h1", "h2", "h3", "li", "td", "th", "dt", "dd", "label", "small", "text", "b"}:
            self._pieces.append(" ")

    def handle_data(self, data):
        if "style" in self._open:
            return
        self._pieces.append(data)
        if "h3" in self._open and "small" not in self._open:
            self._heading += data
        if {"td", "th"} & set(self._open):
            classes, text = self.tables[-1][2][-1][-1]
            self.tables[-1][2][-1][-1] = (classes, text + data)

    def heat(self, heading: str) -> list[list[tuple[str, str]]]:
        """Rows of the heat map under a heading."""
        return next(rows for kind, title, rows in self.tables if kind == "heat" and title == heading)

    def table(self, first: str) -> list[list[tuple[str, str]]]:
        """Rows of the plain table whose heading begins with ``first``."""
        return next(rows for kind, _, rows in self.tables if kind == "plain" and rows[0][0][1] == first)


def browser() -> str | None:
    """The path of a Chromium or Chrome."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


def browse(page: Path, width: int, height: int, *flags: str) -> tuple[str, list[str]]:
    """Open a page; return what the browser prints and its console messages."""
    with tempfile.TemporaryDirectory() as profile:
        command = [str(browser()), *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", *flags]
        done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, re.findall(r".*:CONSOLE.*", done.stderr)


def measured(page: Path, width: int, script: str, action: str = "") -> str:
    """Run scripts in a copy of the page, which itself forbids them; return the value of the last one.

    The window takes its width after the page is loaded: the value of the last change counts.
    """
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy = page.with_name(f"measured_{page.name}")
    say = f'const say = () => console.log("MEASURED " + ({script}) + " END");'
    copy.write_text(
        html.replace("</body>", f'<script>{action};{say} say(); addEventListener("resize", say);</script></body>')
    )
    _, console = browse(copy, width, 900, f"--screenshot={page.with_suffix('.png')}")
    return re.findall(r"MEASURED (.*?) END", "\n".join(console))[-1]
