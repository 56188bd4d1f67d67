"""Which judge a user wants."""

from __future__ import annotations

from emotune.core.sections import Section


class JudgeChoice(Section):
    name: str
    revision: str | None
    labels: dict[str, str] | None
