"""The prompt formats there are."""

from __future__ import annotations

from typing import Literal, get_args

Template = Literal["in_inst", "out_inst", "in_inst_uni", "out_inst_uni"]
TEMPLATES: tuple[str, ...] = get_args(Template)
