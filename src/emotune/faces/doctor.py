"""emotune doctor: what this machine has and lacks, for the embedded default and for each profile."""

from __future__ import annotations

import textwrap
from pathlib import Path

from emotune.core.errors import InputError
from emotune.faces import machine, needs
from emotune.faces.machine import Finding


def examined(root: Path) -> tuple[list[Finding], list[Finding]]:
    """The lines of the machine, and those of the profiles; InputError where `root` is not the repository's."""
    for name in ("dvc.yaml", "params.yaml", "constraints.txt", "pyproject.toml"):
        if not (root / name).is_file():
            raise InputError(f"doctor: no {name} in {root}: run it in the repository's root")
    try:
        gpu, broken = machine.gpu(), []
    except InputError as error:
        gpu, broken = None, [Finding("fail", "torch", str(error), "pip install -c constraints.txt torch")]
    return broken + machine.findings(root, gpu), needs.findings(root, gpu)


def text(findings: list[Finding], width: int = 120) -> str:
    """Aligned lines, `state  subject  found`, and under it, where something is wrong, what to do."""
    column = max(len(finding.subject) for finding in findings)
    lines = []
    for finding in findings:
        says = f"{finding.found}; {finding.to_do}" if finding.to_do else finding.found
        head = f"{finding.state:4}  {finding.subject:{column}}  "
        lines += textwrap.wrap(
            says, width, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
        )
    return "\n".join(lines)
