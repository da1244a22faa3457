"""Code blocks of the documentation, and how each is run. A comment above a fence says what is not usual about it:

    <!-- not run: why -->     shown only
    <!-- file: NAME -->       the block is the file's content
    <!-- patch: NAME -->      a diff that is applied to the file
    <!-- exit: 1 -->          the exit code of a shell block; 0 otherwise

`python` runs in the page's namespace, `bash` in a shell, `console` too, and each line it shows must come back, in order, up to
numbers. `toml`, `yaml`, `diff`, `text` and the like are shown only, unless a comment makes a file or a patch of them.
"""

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(
    r"(?:^[ ]*<!-- (?P<word>not run|file|patch|exit): (?P<value>[^\n]+?) -->\n+)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^[ ]*```$",
    re.MULTILINE | re.DOTALL,
)
_RUN = ("python", "bash", "console")
SHOWN = ("toml", "yaml", "diff", "text", "ini", "json", "xml", "math")
_NUMBER = re.compile(r"-?\d[\d.]*(e[+-]?\d+)?|\binf\b")
_HASH = re.compile(r"-[0-9a-f]{8}\.py")
_BAR = re.compile(r"[━│▶=>|─]+")
_LINVERIFY = "-c 'import sys; from linverify.cli import main; sys.exit(main())'"
SECONDS = 300


@dataclass(frozen=True)
class Block:
    """One fence.

    Attributes:
        line: of the file, where the fence opens.
        language: its info word.
        text: without the fence and its indent.
        word, value: of the comment above it; "" without one.
    """

    line: int
    language: str
    text: str
    word: str
    value: str

    @property
    def runs(self) -> bool:
        """Whether running the page executes it."""
        return self.word != "not run" and (self.language in _RUN or self.word in ("file", "patch"))


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page in order."""
    source = path.read_text(encoding="utf-8")
    found = []
    for m in _BLOCK.finditer(source):
        text = "\n".join(line.removeprefix(m["indent"]) for line in m["text"].split("\n"))
        line = source.count("\n", 0, m.start("language")) + 1
        found.append(Block(line, m["language"], text, m["word"] or "", m["value"] or ""))
    return found


def plain(line: str) -> str:
    """Return a line with its numbers, bars and blanks evened out: what must come back."""
    return " ".join(_NUMBER.sub("#", _BAR.sub(" ", _HASH.sub("-#.py", line))).split())


class Page:
    """Runs the blocks of one page in a folder of its own, which also shows the repository's examples and benchmarks."""

    def __init__(self, folder: Path) -> None:
        """Prepare the folder: `linverify`, `python` and `pytest` are this environment's and this checkout's."""
        self.folder, self.names = folder, dict[str, Any]()
        tools = folder / ".tools"
        tools.mkdir()
        for name, command in (("linverify", _LINVERIFY), ("python", ""), ("pytest", "-m pytest")):
            script = tools / name
            run = (
                "-c 'import sys; from linverify.cli import main; sys.exit(main())'" if name == "linverify" else command
            )
            script.write_text(f'#!/bin/sh\nexec {sys.executable} {run} "$@"\n')
            script.chmod(0o755)
        for name in ("examples", "benchmarks"):
            (folder / name).symlink_to(ROOT / name)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))},
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
            "COLUMNS": "96",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTEST_ADDOPTS": "-p linverify.pytest_plugin" if not _installed() else "",
        }

    def run(self, block: Block) -> None:
        """Do what a reader would do with a block; raises AssertionError where it does not do what the page says."""
        where = f"line {block.line}"
        if block.word == "file":
            self._write(self.folder / block.value, block)
        elif block.word == "patch":
            self._patch(self.folder / block.value, block, where)
        elif block.language == "python":
            self._python(block, where)
        else:
            self._shell(block, where)

    def _write(self, path: Path, block: Block) -> None:
        if block.language == "toml":
            tomllib.loads(block.text)
        if block.language == "yaml":
            assert yaml.safe_load(block.text)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")

    def _patch(self, path: Path, block: Block, where: str) -> None:
        lines = [line for line in block.text.splitlines() if line and not line.startswith(("+++", "---", "@@"))]
        old, new = ("".join(line[1:] + "\n" for line in lines if line[0] in f" {sign}") for sign in "-+")
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{where}: {path.name} holds {text.count(old)} times\n{old}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def _python(self, block: Block, where: str) -> None:
        before = Path.cwd()
        sys.path.insert(0, str(self.folder))
        os.chdir(self.folder)
        try:
            exec(compile(block.text, where, "exec"), self.names)
        finally:
            os.chdir(before)
            sys.path.remove(str(self.folder))
            for name, module in list(sys.modules.items()):
                if str(getattr(module, "__file__", None) or "").startswith(str(self.folder)):
                    del sys.modules[name]  # the next page has files of the same name

    def _shell(self, block: Block, where: str) -> None:
        wanted = int(block.value) if block.word == "exit" else 0
        if block.language == "bash":
            self._command(block.text, wanted, where)
            return
        command, shown = "", list[str]()
        for line in [*block.text.splitlines(), "$ "]:
            if not line.startswith("$ "):
                shown.append(line)
                continue
            if command:
                output = self._command(command, wanted, where)
                _comes_back(shown, output, where)
            command, shown = line.removeprefix("$ "), []

    def _command(self, text: str, wanted: int, where: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", text],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        output = done.stdout + done.stderr
        assert done.returncode == wanted, f"{where}: {text.strip()}: exit code {done.returncode}\n{output}"
        return output


def _installed() -> bool:
    from importlib.metadata import entry_points

    return any(e.name == "linverify" for e in entry_points(group="pytest11"))


def _comes_back(shown: list[str], output: str, where: str) -> None:
    """Every shown line is a line of the output, in order; "..." stands for any lines between."""
    rest = iter([plain(line) for line in output.splitlines()])
    for line in shown:
        wanted = plain(line)
        if wanted and wanted != "...":
            assert wanted in rest, f"{where}: expected the line\n    {line}\nup to numbers, in\n{output}"
