"""What a check finds, and how checks are run so that none can end the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

OK, WARN, FAIL = "OK", "WARN", "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        level: OK, WARN (also what cannot be known) or FAIL (the node will not work).
        found: what is there.
        remedy: what to do about it; "" where nothing is to be done.
    """

    check: str
    level: str
    found: str
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def examine(name: str, check: Check) -> list[Finding]:
    """Run one check; what it raises becomes a WARN, and what it had found stays."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except Exception as error:  # boundary: one check must not end the others
        text = f"cannot be checked: {type(error).__name__}: {error}"
        findings.append(Finding(name, WARN, text))
    return findings


def exit_code(findings: Sequence[Finding]) -> int:
    return int(any(f.level == FAIL for f in findings))


def as_text(findings: Sequence[Finding]) -> str:
    """Return the report for people: one line a finding, its remedy below it."""
    width = max((len(f.check) for f in findings), default=0)
    lines = []
    for f in findings:
        indent = " " * (width + 8)
        lines.append(f"{f.level:<4}  {f.check:<{width}}  " + f.found.replace("\n", "\n" + indent))
        if f.remedy:
            lines.append(f"{indent}-> " + f.remedy.replace("\n", "\n" + indent + "   "))
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the report for programs."""
    return {"ok": not exit_code(findings), "findings": [asdict(f) for f in findings]}
