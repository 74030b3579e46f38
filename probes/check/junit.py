"""Verdicts as JUnit XML, which CI systems show as tests: one suite per cell, one case per bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from interp.cli import Exit
from interp.errors import InputError
from interp.files import atomic_file
from probes.check.gate import WORDS, Finding, Verdict


def write(path: Path, found: Sequence[Verdict]) -> None:
    """Write the file, atomically.

    Args:
        path: of the file.
        found: of all cells.

    Raises:
        InputError: it cannot be written.
    """
    document = ElementTree.ElementTree(suites(found))
    ElementTree.indent(document)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            document.write(temporary, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}", do="Give another --junit") from error


def suites(found: Sequence[Verdict]) -> ElementTree.Element:
    """The root element: an exceeded bound is a failure; one that nothing proves, or nobody can tell, an error."""
    root = ElementTree.Element("testsuites", name="quantscope check")
    for verdict in found:
        suite = ElementTree.SubElement(root, "testsuite", {"name": verdict.cell} | _counts(verdict.findings))
        for finding in verdict.findings:
            _case(suite, verdict.cell, finding)
    return root


def _counts(findings: Sequence[Finding]) -> dict[str, str]:
    failed = sum(finding.exit is Exit.BOUND_EXCEEDED for finding in findings)
    passed = sum(finding.exit is Exit.MEASURED for finding in findings)
    return {"tests": str(len(findings)), "failures": str(failed), "errors": str(len(findings) - failed - passed)}


def _case(suite: ElementTree.Element, cell: str, finding: Finding) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=f"check.{cell}", name=finding.bound)
    if finding.exit is Exit.MEASURED:
        ElementTree.SubElement(case, "system-out").text = finding.sentence
        return
    kind = "failure" if finding.exit is Exit.BOUND_EXCEEDED else "error"
    ElementTree.SubElement(case, kind, type=WORDS[finding.exit], message=finding.sentence)
