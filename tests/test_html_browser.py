"""The page in a browser: sorted, copied, switched, readable at every width."""

import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linverify.reports.changes import compare
from linverify.reports.html import html
from linverify.verdict import Alike, Report, Synthesis

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here: the browser tests of the page are not run"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: the browser tests are not run")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, full_run: Report, tmp_path: Path) -> Iterator[Any]:
    """The page at a desktop's width; whatever it loads or complains of fails the test."""
    path = tmp_path / "run.html"
    path.write_text(html(full_run, compare(dataclasses.replace(full_run, results=full_run.results[1:]), full_run)))
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme="light", permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda r: requests.append(r.url))
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("console", lambda m: complaints.append(m.text))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert complaints == []
    assert {r for r in requests if not r.startswith("blob:")} == {path.as_uri()}


def column(page: Any, number: int) -> list[str]:
    cells = page.locator("#target-0 table.properties tbody tr").all()
    return [cell.locator("td").nth(number).inner_text().splitlines()[0] for cell in cells]


@needs_chromium
def test_a_click_on_a_heading_sorts(opened: Any) -> None:
    assert column(opened, 0)[:2] == ["agreement", "gradients"]
    heading = opened.locator("#target-0 table.properties th", has_text="share of the budget")
    heading.locator("button").click()
    assert [v for v in column(opened, 5) if v != "-"] == ["25.0", ">1.00", "0.50", "0.41"]
    assert heading.get_attribute("aria-sort") == "descending"
    heading.locator("button").click()
    assert [v for v in column(opened, 5) if v != "-"] == ["0.41", "0.50", ">1.00", "25.0"]
    opened.locator("#target-0 table.properties th", has_text="property").locator("button").click()
    assert column(opened, 0) == sorted(column(opened, 0))
    assert heading.get_attribute("aria-sort") is None


@needs_chromium
def test_the_copy_buttons_copy_the_command_and_the_script(opened: Any, script: str) -> None:
    card = opened.locator("#target-0-agreement")
    card.locator(".command button.copy").click()
    command = "linverify replay gla/B1.T33.H1.K16.V17/bf16/gate=mild/seed=3 --target my_gla.py::my_gla --op gla"
    assert opened.evaluate("navigator.clipboard.readText()") == f"{command} --property agreement"
    assert card.locator(".command button.copy").inner_text() == "copied"
    card.locator(".script summary").click()
    card.locator(".script button.copy").click()
    assert opened.evaluate("navigator.clipboard.readText()") == script
    with opened.expect_download() as download:
        card.locator("button.save").click()
    assert download.value.suggested_filename == "gla-agreement.py"
    assert Path(download.value.path()).read_text() == script


@needs_chromium
def test_copying_works_without_the_clipboard_s_permission(opened: Any) -> None:
    opened.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    button = opened.locator("#target-0-agreement .command button.copy")
    button.click()
    opened.wait_for_function("b => b.textContent === 'copied'", arg=button.element_handle())


@needs_chromium
def test_the_theme_switches_and_is_kept(opened: Any) -> None:
    def paper() -> str:
        return str(opened.evaluate("getComputedStyle(document.body).backgroundColor"))

    assert paper() == "rgb(255, 255, 255)"
    opened.locator("#theme").click()
    assert (opened.locator("#theme").inner_text(), paper()) == ("theme: dark", "rgb(13, 17, 23)")
    deadline = time.monotonic() + 10  # the browser writes what a page stores when it finds time
    opened.reload()
    while opened.locator("#theme").inner_text() != "theme: dark" and time.monotonic() < deadline:
        opened.wait_for_timeout(100)
        opened.reload()
    assert (opened.locator("#theme").inner_text(), paper()) == ("theme: dark", "rgb(13, 17, 23)")
    opened.locator("#theme").click()
    assert (opened.locator("#theme").inner_text(), paper()) == ("theme: light", "rgb(255, 255, 255)")
    opened.locator("#theme").click()
    assert opened.locator("#theme").inner_text() == "theme: auto"
    opened.emulate_media(color_scheme="dark")
    assert paper() == "rgb(13, 17, 23)"


@needs_chromium
def test_a_link_to_a_folded_failure_opens_it(opened: Any) -> None:
    card = opened.locator("#target-0-gradients")
    card.evaluate("d => { d.open = false; }")
    opened.locator("#target-0 table.properties a", has_text="gradients").click()
    opened.wait_for_function("d => d.open", arg=card.element_handle())
    assert card.locator("pre.log").is_visible()


@needs_chromium
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_width_cuts_anything_off_and_every_text_can_be_read(opened: Any, width: int, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": 800})
    opened.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.evaluate(CONTRAST) == []
    opened.evaluate("document.querySelector('.why').style.color = getComputedStyle(document.body).backgroundColor")
    assert len(opened.evaluate(CONTRAST)) == 1


@needs_chromium
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_where_to_look_first_is_on_the_first_screen(browser: Any, full_run: Report, tmp_path: Path, width: int) -> None:
    """What several laws say together stands before them, and pushes nothing to the side."""
    lead = Alike("o is what the equations give without g", ("agreement", "gradients", "packed", "linearity", "exact"))
    said = Synthesis(
        lead.laws, ("o", "dq", "dk"), ("state",), ("the state is right, so what is written to it is",), leads=(lead,)
    )
    path = tmp_path / "short.html"
    path.write_text(
        html(dataclasses.replace(full_run, results=(dataclasses.replace(full_run.results[0], synthesis=said),)))
    )
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.get_by_text("o is what the equations give without g").bounding_box()
    assert box["y"] + box["height"] < 844
    assert box["y"] < page.locator(".card").first.bounding_box()["y"]
    assert page.evaluate(CONTRAST) == []
    page.close()


@needs_chromium
def test_the_verdict_and_the_first_diagnosis_are_on_a_phone_s_first_screen(
    browser: Any, full_run: Report, tmp_path: Path
) -> None:
    path = tmp_path / "one.html"
    path.write_text(html(dataclasses.replace(full_run, results=full_run.results[:1])))
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(path.as_uri())
    for seen in ("h1 .badge", "h1 .name", "#target-0-agreement .headline"):
        box = page.locator(seen).first.bounding_box()
        assert box["y"] + box["height"] < 844, seen
    page.close()


# Texts whose contrast with what lies behind them is below 4.5 to 1 (WCAG 2.1, 1.4.3).
CONTRAST = """() => {
  const channel = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = numbers(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) { return c; }
    }
    return [255, 255, 255];
  };
  const faint = new Set();
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || ["SCRIPT", "STYLE", "title"].includes(e.tagName) || !e.getClientRects().length) { continue; }
    const style = getComputedStyle(e);
    const [a, b] = [light(numbers(e instanceof SVGElement ? style.fill : style.color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) { faint.add(`${e.tagName}.${e.getAttribute("class")} ${ratio.toFixed(2)}`); }
  }
  return [...faint];
}"""
