"""Turns and an emotion -> token ids, by the chat template that the tokenizer carries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from emotune.core.dialogue import Turn

# A row for a language model: token ids, and for each whether it belongs to a reply (its end token included).
Row = tuple[list[int], list[bool]]


def template(name: str, special: Sequence[str] = ()) -> str:
    """The text of one of templates/*.jinja, as the `chat_template` for a tokenizer with these special tokens."""
    folder = files("emotune.prompts") / "formats"
    texts = [(folder / f"{part}.jinja").read_text("utf-8") for part in ("_prelude", name)]
    return "".join([f"{{%- set special = {json.dumps(list(special), ensure_ascii=False)} -%}}\n", *texts])


def messages(turns: Iterable[Turn], system_prompt: str | None) -> list[dict[str, str]]:
    """Turns as chat messages `{role, content, emotion}`, after the system prompt where there is one."""
    first = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return first + [{"role": turn.role, "content": turn.content, "emotion": turn.emotion} for turn in turns]


def prompt_text(tokenizer: Any, history: Sequence[Turn], emotion: str, system_prompt: str | None) -> str:
    """What the model is given when it is asked to answer `history` in `emotion`."""
    return tokenizer.apply_chat_template(
        messages(history, system_prompt), tokenize=False, add_generation_prompt=True, emotion=emotion
    )


def prompt(tokenizer: Any, history: Sequence[Turn], emotion: str, system_prompt: str | None) -> tuple[str, list[int]]:
    """`prompt_text` and its token ids: a prefix of every training row that goes on from there."""
    text = prompt_text(tokenizer, history, emotion, system_prompt)
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def prompt_ids(tokenizer: Any, history: Sequence[Turn], emotion: str, system_prompt: str | None) -> list[int]:
    """The token ids of `prompt_text`."""
    return prompt(tokenizer, history, emotion, system_prompt)[1]


def training_row(tokenizer: Any, turns: Sequence[Turn], system_prompt: str | None) -> Row:
    """A whole dialogue as ids, with True for each reply's tokens and its end token and False for all else."""
    [text], [replies] = render_jinja_template(
        [messages(turns, system_prompt)],
        chat_template=tokenizer.chat_template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    # By where a token ends: its start may leave out the space it begins with (Llama 3's and GPT-2's tokenizers), and
    # then apply_chat_template's own mask, which looks for that space, is empty.
    ends = [end for _, end in encoded["offset_mapping"]]
    return encoded["input_ids"], [any(start < end <= stop for start, stop in replies) for end in ends]


def reply_row(tokenizer: Any, history: Sequence[Turn], reply: Turn, system_prompt: str | None) -> Row:
    """Prompt and reply as ids, with True for the reply's tokens and its end: works for any chat template."""
    asked = prompt_ids(tokenizer, history, reply.emotion, system_prompt)
    text = tokenizer.apply_chat_template(messages([*history, reply], system_prompt), tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if ids[: len(asked)] != asked:
        raise ValueError(f"the chat template does not continue its own generation prompt: {text!r}")
    return ids, [False] * len(asked) + [True] * (len(ids) - len(asked))
