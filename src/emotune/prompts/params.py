"""The prompt formats there are."""

from typing import Literal

Template = Literal["in_inst", "out_inst", "in_inst_uni", "out_inst_uni"]
