"""JUnit XML: a test suite a target, a test case a property; what CI systems show without being taught.

The elements, their order and their attributes are those that Ant's schema (Windy Road) requires and Jenkins' schema allows.
A violation of a required property is a failure, a required property that could not be judged is an error, and whatever the
verdict does not depend on is skipped with its reason; so the file is red exactly when the exit code is not 0.
"""

import platform
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from linverify.reports._format import Format
from linverify.reports.console import failure_as_text, replay_command
from linverify.reports.headline import headline_text
from linverify.reports.sentence import sentence
from linverify.reports.text import words
from linverify.verdict import PropertyResult, Report, Status, TargetResult

# What XML 1.0 has no spelling for, terminal escapes of a log among it.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WIDTH = 120


def junit(report: Report) -> str:
    """Return the document, with its XML declaration."""
    suites = Element("testsuites")
    for number, result in enumerate(report.results):
        suites.append(_suite(report, result, number))
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _suite(report: Report, result: TargetResult, number: int) -> Element:
    suite = Element("testsuite")
    properties = SubElement(suite, "properties")
    for name, value in (*report.environment.items(), ("seed", str(report.seed)), ("profile", report.profile)):
        SubElement(properties, "property", name=_token(name), value=_clean(value))
    cases = list(_cases(report, result))
    suite.extend(cases)
    SubElement(suite, "system-out").text = _clean("\n".join([headline_text(result), *result.notes]))
    SubElement(suite, "system-err").text = ""
    total = result.seconds.get("total", sum(p.seconds for p in result.properties))
    attributes = {
        "name": _token(result.target),
        "package": _token(result.operator) or "-",
        "id": str(number),
        "timestamp": _timestamp(report),
        "hostname": platform.node() or "localhost",
        "tests": str(len(cases)),
        "failures": str(sum(c.find("failure") is not None for c in cases)),
        "errors": str(sum(c.find("error") is not None for c in cases)),
        "skipped": str(sum(c.find("skipped") is not None for c in cases)),
        "time": f"{total:.3f}",
    }
    suite.attrib.update(attributes)
    return suite


def _cases(report: Report, result: TargetResult) -> Iterator[Element]:
    """Yield a case a property, and one for the target itself where it could not be checked and no property says so."""
    told = False
    for found in result.properties:
        case = _case(result, found.name, found.seconds)
        outcome = _outcome(report, result, found)
        if outcome is not None:
            case.append(outcome)
            told = told or outcome.tag == "error"
        yield case
    if result.verdict == "unchecked" and not told:
        case = _case(result, "verdict", 0.0)
        case.append(_element("error", "unchecked", result.reason or "could not be checked"))
        yield case


def _case(result: TargetResult, name: str, seconds: float) -> Element:
    classname = _token(f"{result.target} {result.operator}")
    return Element("testcase", name=name, classname=classname, time=f"{seconds:.3f}")


def _outcome(report: Report, result: TargetResult, found: PropertyResult) -> Element | None:
    note = found.note or words(found.status)
    if found.status in (Status.PASS, Status.MARGINAL):
        return None
    if found.status is Status.VIOLATION and found.required:
        text = failure_as_text(result, found, replay_options=report.replay_options, width=_WIDTH)
        kind, message = (found.failure.evidence.kind, sentence(found)) if found.failure else ("violation", note)
        return _element("failure", kind, message, text)
    if found.status is Status.UNCHECKED and found.required:
        return _element("error", "unchecked", note)
    aside = "" if found.required else "reported, not required: "
    if found.failure is None:
        return _element("skipped", found.status, f"{aside}{note}")
    replay = replay_command(result, found, report.replay_options)
    return _element("skipped", found.status, f"{aside}{sentence(found)}; {replay}")


def _element(tag: str, kind: str, message: str, text: str = "") -> Element:
    element = Element(tag, type=_clean(kind), message=_clean(message))
    element.text = _clean(text) or None
    return element


def _timestamp(report: Report) -> str:
    """Return when the run started, in UTC and without a zone, as Ant's schema wants it."""
    try:
        started = datetime.fromisoformat(report.started)
    except ValueError:
        started = datetime.fromtimestamp(0, UTC)
    return started.replace(tzinfo=None, microsecond=0).isoformat()


def _token(text: str) -> str:
    return " ".join(_clean(text).split())


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


FORMAT = Format("junit", "Write JUnit XML for a CI system.", lambda report, _: junit(report))
