"""A vote as a voter casts it, for the tests of votes and of what is made of them."""

import json
from typing import Any

from emotune.preferences.votes import Vote

SFT, DPO = "a" * 64, "b" * 64


def vote(choice: str, at: int = 0, **changes: Any) -> Vote:
    row = {
        "voter": "ann",
        "at": f"2026-01-02T03:04:{at:02}.000000Z",
        "dialogue": "d1/1",
        "context": [{"role": "user", "content": "We won!", "emotion": "happiness"}],
        "emotion": "fear",
        "left": {"model": "sft", "adapter": SFT, "reply": "Oh no."},
        "right": {"model": "dpo", "adapter": DPO, "reply": "I am afraid."},
        "choice": choice,
        "note": "",
        "seed": 7,
        "draw": 0,
        "seconds": 1.5,
    }
    return Vote.model_validate_json(json.dumps(row | changes))
