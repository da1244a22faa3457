"""What mkdocs does beside turning pages into HTML: reference pages from the code, measured results, mathematics as MathML."""

import html
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

HERE = Path(__file__).resolve().parent
_MATHEMATICS = re.compile(r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>', re.DOTALL)
_LINK = re.compile(r"\[([^\]]+)\]\((?!https?://)([^)]*)\)")


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _in_the_repository(link: re.Match[str]) -> str:
    """Name the file that a page of measured results points at: it lies in the repository, not in the site."""
    target = (HERE / "published" / link[2].partition("#")[0]).resolve()
    if not target.exists():
        raise ValueError(f"docs/published: no such file: {link[2]}")
    name = target.relative_to(HERE.parent).as_posix()
    return f"`{name}`" if link[1].strip("`") in name else f"{link[1]} (`{name}`)"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made anew at every build."""
    pages = {f"reference/{name}.md": make() for name, make in _beside("reference_pages").PAGES.items()}
    for path in sorted((HERE / "published").glob("*.md")):
        pages[f"measured/{path.name}"] = _LINK.sub(_in_the_repository, path.read_text(encoding="utf-8"))
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_content(text: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers show without a script."""

    def mathml(found: re.Match[str]) -> str:
        inline, block = found[2], found[3]
        return str(convert(html.unescape(inline or block).strip(), display="inline" if inline else "block"))

    return _MATHEMATICS.sub(mathml, text)
