"""The documentation: it builds strictly and loads nothing from elsewhere, its reference is whole, and every code block runs."""

import importlib.util
import re
from pathlib import Path

import pytest

from linverify import registry
from tests.doc_blocks import SHOWN, Page, blocks, plain

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted((DOCS / "pages").rglob("*.md"))]
RUNNING = [p for p in PAGES if any(b.runs for b in blocks(p))]
RUNS = ("python", "bash", "console")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", RUNNING, ids=name_of)
def test_every_code_block_of_a_page_runs(path: Path, tmp_path: Path) -> None:
    page = Page(tmp_path)
    for block in blocks(path):
        if block.runs:
            page.run(block)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_fence_is_known_and_one_that_is_not_run_says_why(path: Path) -> None:
    found = blocks(path)
    assert path.read_text().count("```") == 2 * len(found), "a fence without a language, or not closed"
    for block in found:
        assert block.language in (*RUNS, *SHOWN), f"line {block.line}: {block.language}"
        assert block.word != "not run" or len(block.value.split()) > 2, f"line {block.line}: say why it is not run"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_no_code_hides_from_the_tests_in_an_indented_block(path: Path) -> None:
    assert indented(path.read_text()) == []


def indented(text: str) -> list[str]:
    """Lines that Markdown takes for code because of four blanks: no fence, so nothing would run them."""
    found, fenced, listed, blank = list[str](), False, False, True
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and line.strip():
            if not line.startswith(" "):
                listed = line.startswith(("* ", "- ")) or line.lstrip("0123456789").startswith(". ")
            if line.startswith("    ") and blank and not listed:
                found.append(line)
        blank = not line.strip()
    return found


def test_an_indented_block_is_seen() -> None:
    assert indented("text\n\n    linverify check x\n") == ["    linverify check x"]
    assert indented("* item\n\n    more of it\n") == []
    assert indented("```python\n\n    x = 1\n```\n") == []


def test_most_pages_run_something() -> None:
    assert len(RUNNING) >= 10
    assert {"README.md", "docs/pages/tutorial.md", "docs/pages/budget.md"} <= {name_of(p) for p in RUNNING}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```console\n$ echo 17 cases\n18 cases\n```\n", ""),
        ("```console\n$ echo wrong\nright\n```\n", "expected the line"),
        ("```console\n$ printf 'a\\nb\\n'\nb\na\n```\n", "expected the line"),
        ("<!-- exit: 1 -->\n```bash\ntrue\n```\n", "exit code 0"),
        ("```bash\nfalse\n```\n", "exit code 1"),
        (
            "<!-- file: f.py -->\n```python\nx = 1\n```\n\n```python\nimport f\nassert f.x == 2, f'x is {f.x}'\n```\n",
            "x is 1",
        ),
        ("<!-- file: f.txt -->\n```text\na\nb\n```\n\n<!-- patch: f.txt -->\n```diff\n-c\n+d\n```\n", "holds 0 times"),
        ("<!-- not run: there is no such command -->\n```bash\nno-such-command\n```\n", ""),
    ],
)
def test_a_page_that_says_what_is_not_so_fails(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    (tmp_path / "folder").mkdir()
    page = Page(tmp_path / "folder")

    def run() -> None:
        for block in blocks(tmp_path / "page.md"):
            if block.runs:
                page.run(block)

    if not message:
        run()
        return
    with pytest.raises(AssertionError, match=message):
        run()


def test_numbers_and_bars_do_not_count() -> None:
    assert plain("agreement   pass   21   0.58   ━━━━  │   3.2 s") == plain("agreement pass 9 1.1e+06 ━│━▶ 10 s")
    assert plain("agreement   pass") != plain("agreement   violation")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CI builds it."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(DOCS / "mkdocs.yml"), site_dir=str(folder)))
    return folder


def test_the_site_builds_strictly_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    loads = re.compile(
        r"""<(?:script|img|iframe)[^>]*\bsrc=["']?(https?:)?//|<link[^>]*rel=["']?(?:stylesheet|preconnect)[^>]*https?://"""
    )
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert loads.search(text) is None, page
        assert "arithmatex" not in text, f"{page}: a formula was left as TeX"
    assert "<math" in (site / "budget.html").read_text()
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import", sheet.read_text(encoding="utf-8")), sheet


def test_every_page_is_in_the_navigation_and_every_inner_link_has_its_target(site: Path) -> None:
    pages = {p.relative_to(site).as_posix(): p.read_text(encoding="utf-8") for p in site.rglob("*.html")}
    linked = set(re.findall(r'class="md-nav__link"[^>]*|href="([^"#:]+\.html)"', pages["index.html"]))
    for path in (DOCS / "pages").rglob("*.md"):
        name = path.relative_to(DOCS / "pages").with_suffix(".html").as_posix()
        assert name in linked or name == "index.html", name
    for name, text in pages.items():
        for target, anchor in re.findall(r'href="([^":#]*\.html)?#([^"]+)"', text):
            inside = (site / name).parent.joinpath(target).resolve() if target else site / name
            assert f'id="{anchor}"' in inside.read_text(encoding="utf-8"), f"{name}: {target}#{anchor}"


def test_the_reference_is_whole(site: Path) -> None:
    operators = (site / "reference" / "operators.html").read_text()
    laws = (site / "reference" / "properties.html").read_text()
    assert all(f'id="{name}"' in operators for name in registry.operators())
    assert all(f'id="{name}"' in laws for name in registry.properties())
    commands = (site / "reference" / "commands.html").read_text()
    for word in ("linverify check", "linverify compare", "linverify init", "--profile", "130"):
        assert word in commands


def test_the_reference_is_made_from_the_code() -> None:
    spec = importlib.util.spec_from_file_location("reference_pages", DOCS / "reference_pages.py")
    assert spec is not None
    assert spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    gla = registry.operator("gla")
    assert gla.hazards[0] in pages.operators()
    assert registry.property_named("agreement").why in pages.properties()
