"""Turns as chat messages, and the templates that make a text of them: formats/*.jinja."""

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files

from emotune.core.dialogue import Turn


def template(name: str, special: Sequence[str] = ()) -> str:
    """The text of one of formats/*.jinja, as the `chat_template` for a tokenizer with these special tokens."""
    folder = files("emotune.prompts") / "formats"
    texts = [(folder / f"{part}.jinja").read_text("utf-8") for part in ("_prelude", name)]
    return "".join([f"{{%- set special = {json.dumps(list(special), ensure_ascii=False)} -%}}\n", *texts])


def messages(turns: Iterable[Turn], system_prompt: str | None) -> list[dict[str, str]]:
    """Turns as chat messages `{role, content, emotion}`, after the system prompt where there is one."""
    first = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return first + [{"role": turn.role, "content": turn.content, "emotion": turn.emotion} for turn in turns]
