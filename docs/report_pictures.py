"""The pictures of docs/pages/reports.md, made from a recorded run: ``python docs/report_pictures.py RUN.json``.

Needs Chromium and playwright. Record the run first, from the root of the checkout:

    linverify check examples/my_gla_without_tail_mask.py --profile quick --device cpu --json run.json
"""

import io
import json
import re
import shutil
import sys
import tempfile
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import markdown  # noqa: E402  # the checkout beside this file comes first
from playwright.sync_api import Browser, sync_playwright  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.terminal_theme import MONOKAI  # noqa: E402

from linverify.reports import json_file  # noqa: E402
from linverify.reports.console import print_target  # noqa: E402
from linverify.reports.github import annotations, job_summary  # noqa: E402
from linverify.reports.html import html  # noqa: E402
from linverify.reports.junit import junit  # noqa: E402
from linverify.reports.sarif import sarif  # noqa: E402
from linverify.verdict import Report  # noqa: E402

PICTURES = ROOT / "docs" / "pages" / "reports"
_CONSOLE = """<style>
body {{ margin: 16px; background: {background}; color: {foreground} }}
pre {{ font: 13px/1.35 "DejaVu Sans Mono", monospace; margin: 0 }}
{stylesheet}</style><pre>{code}</pre>"""
# As GitHub shows a job summary, near enough: its Markdown, its widths.
_SUMMARY = """<meta charset="utf-8"><style>
body {{ margin: 24px; font: 14px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1f2328 }}
table {{ border-collapse: collapse }} td, th {{ border: 1px solid #d1d9e0; padding: 4px 10px }}
pre {{ background: #f6f8fa; padding: 12px; font: 12px/1.45 "DejaVu Sans Mono", monospace; overflow: hidden }}
</style>{body}"""
_MACHINES = """<meta charset="utf-8"><style>
body {{ margin: 20px; font: 13px/1.4 system-ui, "DejaVu Sans", sans-serif; color: #1f2328 }}
h2 {{ font-size: 14px; margin: 12px 0 4px }}
pre {{ background: #f6f8fa; border: 1px solid #d1d9e0; padding: 8px 12px; margin: 0; font: 12px/1.4 "DejaVu Sans Mono";
  white-space: pre-wrap; overflow-wrap: anywhere }}
</style>{body}"""


def main(arguments: list[str]) -> int:
    """Draw the page at two widths, the console, a workflow's summary, and what machines read."""
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
        for name, text, width, tall in (("summary", _summary(run), 1000, 1250), ("machines", _machines(run), 1000, 0)):
            drawn = Path(folder) / f"{name}.html"
            drawn.write_text(text, encoding="utf-8")
            _shoot(browser, drawn, f"{name}.png", width=width, height=tall, dark=False)
        browser.close()
    return 0


def _summary(run: Report) -> str:
    text = job_summary(run).replace("❌", "✘").replace("✅", "✔")  # the usual fonts of a server have no emoji
    return _SUMMARY.format(body=markdown.markdown(text, extensions=["tables", "fenced_code", "md_in_html"]))


def _machines(run: Report) -> str:
    """The same failure in four formats: the lines that say it."""
    finding = json.loads(sarif(run))["runs"][0]["results"][0]
    said = json.dumps(json_file.to_json(run)["results"][0]["synthesis"], indent=1, ensure_ascii=False)
    case = junit(run).partition("<testcase ")[2].partition("</testcase>")[0]
    first = annotations(run).partition("\n")[0].replace("%0A", "%0A\n  ")
    parts = {
        "JSON (--json): results[0].synthesis": re.sub(
            r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", said
        ),
        "JUnit (--junit)": f"<testcase {case}"[:900] + " ...",
        "SARIF (--sarif): runs[0].results[0]": json.dumps(finding, indent=1, ensure_ascii=False)[:1300] + " ...",
        "GitHub (--github)": first,
    }
    return _MACHINES.format(body="".join(f"<h2>{name}</h2><pre>{escape(text)}</pre>" for name, text in parts.items()))


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
