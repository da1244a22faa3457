"""The pictures of docs/pages/reports.md, made from a recorded run: ``python docs/report_pictures.py RUN.json``.

Needs Chromium and playwright. Record the run first, from the root of the checkout:

    linverify check examples/my_gla_without_tail_mask.py --profile quick --device cpu --json run.json
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from playwright.sync_api import Browser, sync_playwright  # noqa: E402  # the checkout beside this file comes first
from rich.console import Console  # noqa: E402
from rich.terminal_theme import MONOKAI  # noqa: E402

from linverify.reports import json_file  # noqa: E402
from linverify.reports.console import print_target  # noqa: E402
from linverify.reports.html import html  # noqa: E402
from linverify.verdict import Report  # noqa: E402

PICTURES = ROOT / "docs" / "pages" / "reports"
_CONSOLE = """<style>
body {{ margin: 16px; background: {background}; color: {foreground} }}
pre {{ font: 13px/1.35 "DejaVu Sans Mono", monospace; margin: 0 }}
{stylesheet}</style><pre>{code}</pre>"""


def main(arguments: list[str]) -> int:
    """Draw the page at two widths and the console."""
    (record,) = arguments
    run = json_file.read(Path(record))
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = Path(folder) / "page.html"
        page.write_text(html(run), encoding="utf-8")
        _shoot(browser, page, "page.png", width=1280, height=1700, dark=False)
        _shoot(browser, page, "phone.png", width=390, height=1100, dark=True)
        console = Path(folder) / "console.html"
        console.write_text(_console(run), encoding="utf-8")
        _shoot(browser, console, "console.png", width=960, height=0, dark=True)
        browser.close()
    return 0


def _console(run: Report) -> str:
    console = Console(record=True, width=110, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for result in run.results:
        print_target(console, result, replay_options=run.replay_options)
    return console.export_html(theme=MONOKAI, code_format=_CONSOLE)


def _shoot(browser: Browser, page: Path, name: str, *, width: int, height: int, dark: bool) -> None:
    """Take a picture of the upper part of a page, or of all of it where the height is 0."""
    scheme = "dark" if dark else "light"
    tab = browser.new_page(viewport={"width": width, "height": height or 600}, color_scheme=scheme)
    tab.goto(page.as_uri())
    tab.screenshot(path=PICTURES / name, full_page=not height)
    tab.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
