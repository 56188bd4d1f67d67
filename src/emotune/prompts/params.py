"""The prompt formats there are, for dialogues with emotions and for instructions."""

from typing import Literal

Template = Literal["in_inst", "out_inst", "in_inst_uni", "out_inst_uni"]
# `own` is the chat template that the base model came with.
Format = Literal["alpaca", "user_bot", "question_answer", "own"]
