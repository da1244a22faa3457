"""The zoo's record: a line of JSON a result, appended as results come; each is good for one program.

A line holds section, key, the digest of the program, and the row. The section "runs" says where and when results were made.
"""

import ast
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.zoo.catalogue import BUGS, CORRECT
from tests.zoo.record import Entry

Row = dict[str, Any]
Sections = dict[str, dict[str, Row]]
SECTIONS = ("runs", "bugs", "correct", "rivals")


def digest(entry: Entry) -> str:
    """What an entry computes and which law is asked alone; comments and layout are no part of it.

    As source: what `ast.dump` says of a program differs between versions of Python.
    """
    said = (ast.unparse(ast.parse(entry.text())), entry.function, getattr(entry, "law", ""))
    return hashlib.sha256(repr(said).encode()).hexdigest()[:12]


def named(key: str) -> str:
    """The entry that a key speaks of: its first word."""
    return key.partition(" ")[0]


class Records:
    """Rows by section and key, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digests = {e.name: digest(e) for e in (*BUGS, *CORRECT)}
        self.sections: Sections = {section: {} for section in SECTIONS}
        if path.exists():
            self.take(path.read_text(encoding="utf-8").splitlines())

    def take(self, lines: Iterable[str]) -> None:
        """Take over what is on these lines and still stands."""
        for line in lines:
            row = json.loads(line)
            section, key = row.pop("section"), row.pop("key")
            if section == "runs" or row.pop("digest") == self.digests.get(named(key)):
                self.sections[section][key] = row

    def add(self, section: str, key: str, row: Row) -> None:
        """Take a row in, and append it to the file."""
        self.sections[section][key] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(self._line(section, key, row))

    def rewrite(self) -> None:
        """Write the file anew, in the order of the entries, without what no longer stands."""
        place = {name: n for n, name in enumerate(self.digests)}
        lines = [
            self._line(section, key, self.sections[section][key])
            for section in SECTIONS
            for key in sorted(self.sections[section], key=lambda k: (place.get(named(k), 0), k))
        ]
        self.path.write_text("".join(lines), encoding="utf-8")

    def _line(self, section: str, key: str, row: Row) -> str:
        program = {} if section == "runs" else {"digest": self.digests[named(key)]}
        return json.dumps({"section": section, "key": key, **program, **row}, separators=(",", ":")) + "\n"
