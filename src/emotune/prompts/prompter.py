"""Turns and an emotion -> token ids, by the chat template that the tokenizer carries, within the model's context."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from emotune.core.dialogue import ASSISTANT, USER, Turn, history, trim
from emotune.core.errors import InputError

# A row for a language model: token ids, and for each whether it belongs to a reply (its end token included).
Row = tuple[list[int], list[bool]]
# What opens a thought, in the templates of models that think before they reply.
THOUGHT = "<think>"


def template_text(name: str, special: Sequence[str] = ()) -> str:
    """The text of one of formats/*.jinja, as the `chat_template` for a tokenizer with these special tokens."""
    folder = files("emotune.prompts") / "formats"
    texts = [(folder / f"{part}.jinja").read_text("utf-8") for part in ("_prelude", name)]
    return "".join([f"{{%- set special = {json.dumps(list(special), ensure_ascii=False)} -%}}\n", *texts])


def messages(turns: Iterable[Turn], system_prompt: str | None) -> list[dict[str, str]]:
    """Turns as chat messages, after the system prompt where there is one."""
    first = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return first + [turn.message() for turn in turns]


@dataclass(frozen=True, slots=True)
class Prompter:
    """A tokenizer with its template, the system prompt, and how much of a dialogue a row may hold.

    `context` is in tokens. `history_turns` is how many turns a prompt has at most, for whoever asks for single replies.
    `neutral` is the emotion that a prompt's twin asks for, where replies are guided by one.
    """

    tokenizer: Any
    system_prompt: str | None
    context: int
    history_turns: int = 0
    neutral: str | None = None

    def history(self, turns: Sequence[Turn], index: int) -> tuple[Turn, ...]:
        """The turns before turn `index` that a prompt for it begins with."""
        return history(turns, index, self.history_turns)

    def text(self, history: Sequence[Turn], emotion: str) -> str:
        """What the model is given when it is asked to answer `history` in `emotion`, without a thought before.

        InputError where the template begins a thought all the same: what is sampled would be that, and no reply.
        """
        text = self._rendered(history, add_generation_prompt=True, emotion=emotion)
        if text.rstrip().endswith(THOUGHT):
            raise InputError(
                f"model.base: its chat template ends a prompt in {THOUGHT}, with enable_thinking=False too; "
                "accepted: a model whose replies begin where its prompt ends"
            )
        return text

    def ids(self, history: Sequence[Turn], emotion: str) -> list[int]:
        """The token ids of `text`: a prefix of every training row that goes on from there."""
        return self.encoded(self.text(history, emotion))

    def tag_ids(self, labels: Iterable[str]) -> list[int]:
        """The tokens that the template writes for these emotions, tags and names, and never without one; in order."""
        tagged: set[int] = set()
        plain: set[int] = set()
        for label in labels:
            turns = [Turn(role, ".", label) for role in (USER, ASSISTANT, USER)]
            tagged.update(self.ids(turns, label))
            without = self._rendered(turns, chat_template=template_text("native"), add_generation_prompt=True)
            plain.update(self.encoded(without))
        return sorted(tagged - plain)

    def twin(self, history: Sequence[Turn], emotion: str) -> tuple[int, ...] | None:
        """The token ids of the prompt that asks for `neutral`; None without one, and where it is the same prompt."""
        if self.neutral in (None, emotion):
            return None
        ids = self.ids(history, str(self.neutral))
        return None if ids == self.ids(history, emotion) else tuple(ids)

    def training_row(self, turns: Sequence[Turn]) -> Row:
        """A whole dialogue as ids, with True for each reply's tokens and its end token and False for all else."""
        from transformers.utils.chat_template_utils import render_jinja_template

        [text], [replies] = render_jinja_template(
            [messages(turns, self.system_prompt)],
            chat_template=self.tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        # By where a token ends: its start may leave out the space it begins with (Llama 3's and GPT-2's tokenizers),
        # and then apply_chat_template's own mask, which looks for that space, is empty.
        ends = [end for _, end in encoded["offset_mapping"]]
        return encoded["input_ids"], [any(start < end <= stop for start, stop in replies) for end in ends]

    def reply_row(self, history: Sequence[Turn], reply: Turn) -> Row:
        """Prompt and reply as ids, with True for the reply's tokens and its end token: works for any chat template."""
        prompt = self.ids(history, reply.emotion)
        text = self._rendered([*history, reply])
        ids = self.encoded(text)
        if ids[: len(prompt)] != prompt:
            raise ValueError(f"the chat template does not continue its own generation prompt: {text!r}")
        of_reply = self._ended(ids[len(prompt) :])
        return [*prompt, *of_reply], [False] * len(prompt) + [True] * len(of_reply)

    def fitting_row(self, history: Sequence[Turn], reply: Turn) -> Row | None:
        """`reply_row` behind the latest turns of `history`, whole, that leave room for it; None where none do."""
        row = self.reply_row(trim(history, lambda turns: self._holds(self.reply_row(turns, reply))), reply)
        return row if self._holds(row) else None

    def _holds(self, row: Row) -> bool:
        return len(row[0]) <= self.context

    def _rendered(self, turns: Sequence[Turn], **how: Any) -> str:
        """The text of turns, by a template that lets its model think without a thought."""
        return self.tokenizer.apply_chat_template(
            messages(turns, self.system_prompt), tokenize=False, enable_thinking=False, **how
        )

    def _ended(self, ids: list[int]) -> list[int]:
        """A reply's ids up to its end token; ChatML has a new line behind it, Phi-3 the end of the whole text too."""
        added = self.tokenizer.added_tokens_decoder.items()
        special = {*self.tokenizer.all_special_ids, *(number for number, token in added if token.special)}
        end = len(ids)
        for place, token in reversed(list(enumerate(ids, start=1))):
            if token in special:
                end = place
            elif self.tokenizer.decode([token]).strip():
                break
        return ids[:end]

    def fitting_history(self, history: Sequence[Turn], emotion: str, reply_tokens: int) -> tuple[Turn, ...]:
        """The latest turns of `history`, whole, that leave room for the reply (never less than the last).

        They leave it in the prompt's twin too, which begins where the prompt does.
        """
        room, emotions = self.context - reply_tokens, {emotion, self.neutral or emotion}
        return trim(history, lambda turns: all(len(self.ids(turns, each)) <= room for each in emotions))

    def fitting_prompt(
        self, history: Sequence[Turn], emotion: str, reply_tokens: int
    ) -> tuple[tuple[Turn, ...], tuple[int, ...], tuple[int, ...] | None]:
        """`fitting_history`, its prompt's ids and its twin's; a last turn that alone leaves no room is cut in front.

        The twin loses as many tokens as the prompt.
        """
        turns = self.fitting_history(history, emotion, reply_tokens)
        ids, twin = tuple(self.ids(turns, emotion)), self.twin(turns, emotion)
        over = max(0, len(ids) - self.context + reply_tokens, len(twin or ()) - self.context + reply_tokens)
        ids, twin = ids[over:], twin and twin[over:]
        return turns, ids, None if twin == ids else twin

    def pieces(self, turns: Sequence[Turn]) -> list[tuple[Turn, ...]]:
        """A dialogue cut between turns into as few pieces that fit the context as will do, in order.

        Each piece starts with a user turn and ends with a reply. An exchange that alone is longer is left out.
        """
        if self._holds(self.training_row(turns)):
            return [tuple(turns)]
        pieces: list[tuple[Turn, ...]] = []
        piece: tuple[Turn, ...] = ()
        for exchange in (tuple(turns[i : i + 2]) for i in range(0, len(turns) - 1, 2)):
            assert exchange[1].role == ASSISTANT
            if self._holds(self.training_row((*piece, *exchange))):
                piece = (*piece, *exchange)
                continue
            if piece:
                pieces.append(piece)
            piece = exchange if self._holds(self.training_row(exchange)) else ()
        return [*pieces, piece] if piece else pieces

    def encoded(self, text: str) -> list[int]:
        """The token ids of a text that a template made, whose beginning is in it."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
