"""A base model that is told the emotion in words: an instruction, and behind it examples, as many as fit."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import accumulate
from typing import Any

from emotune.core import seeds
from emotune.core.dialogue import ASSISTANT, USER, Dialogue, Turn, normal_form, trim
from emotune.core.errors import InputError
from emotune.prompts.prompter import Prompter, Row


@dataclass(frozen=True, slots=True)
class Example:
    """What was said, and what a human replied to it in the emotion that the example is of."""

    said: str
    reply: str


# The examples for what was said last and an emotion, in the order in which they are shown.
Examples = Callable[[str, str], Sequence[Example]]


def by_emotion(train: Sequence[Dialogue], labels: Sequence[str]) -> dict[str, list[Example]]:
    """What train dialogues have to show of each emotion, in order; of replies that are the same, the first."""
    pools: dict[str, dict[str, Example]] = {label: {} for label in labels}
    for dialogue in train:
        for before, turn in zip(dialogue.turns, dialogue.turns[1:], strict=False):
            if turn.role == ASSISTANT:
                pools[turn.emotion].setdefault(normal_form(turn.content), Example(before.content, turn.content))
    return {label: list(pool.values()) for label, pool in pools.items()}


def at_random(pools: Mapping[str, Sequence[Example]], shots: int, seed: int) -> Examples:
    """So many of an emotion's pool, all where it has fewer: the same for every prompt, which then begin alike."""
    drawn = {
        label: random.Random(seeds.key(seed, "shots", label)).sample(pool, min(shots, len(pool)))
        for label, pool in pools.items()
    }
    return lambda said, emotion: drawn[emotion]


def most_similar(pools: Mapping[str, Sequence[Example]], shots: int) -> Examples:
    """Those of an emotion's pool that answer what is most like `said`, by TF-IDF of its words; the most like first."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # seconds, which no other way of asking waits for

    texts = {label: [example.said for example in pool] for label, pool in pools.items() if pool}
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    vectorizer.fit([text for own in texts.values() for text in own])
    weights = {label: vectorizer.transform(own) for label, own in texts.items()}

    def examples(said: str, emotion: str) -> Sequence[Example]:
        if emotion not in weights:
            return []
        likeness = (weights[emotion] @ vectorizer.transform([said]).T).toarray()[:, 0]
        return [pools[emotion][at] for at in (-likeness).argsort(kind="stable")[:shots]]

    return examples


@dataclass(frozen=True)
class Prompted:
    """A Prompter whose prompts begin with an instruction that names the emotion, and with examples of it.

    These stand where the model's own chat template has a system message, or, where it has none, before the first turn
    of the user. The dialogue comes first: it keeps what the instruction alone leaves room for, and of the examples the
    first are shown, as many as fit beside it. `shown` notes how many these were for each prompt.
    """

    plain: Prompter
    instruction: str
    example: str = ""
    examples: Examples = lambda said, emotion: ()
    shown: dict[tuple[tuple[Turn, ...], str], int] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Any:
        return self.plain.tokenizer

    @property
    def history_turns(self) -> int:
        return self.plain.history_turns

    @cached_property
    def has_place(self) -> bool:
        """Whether the chat template takes a system message, and writes what it says."""
        from jinja2 import TemplateError

        told = [{"role": "system", "content": "Attention"}, {"role": USER, "content": "."}]
        try:
            return "Attention" in self.tokenizer.apply_chat_template(told, tokenize=False)
        except TemplateError:
            return False

    def fitting_prompt(
        self, history: Sequence[Turn], emotion: str, reply_tokens: int
    ) -> tuple[tuple[Turn, ...], tuple[int, ...], None]:
        """The latest turns of `history`, whole, that leave room for the reply, and the prompt's ids; it has no twin.

        A last turn that alone leaves no room is cut in front; InputError where the instruction leaves none.
        """
        room = self.plain.context - reply_tokens
        ids = cache(lambda turns, examples: self._ids(turns, emotion, examples))
        turns = trim(tuple(history), lambda turns: len(ids(turns, ())) <= room)
        while len(ids(turns, ())) > room:
            turns = (self._shorter(turns[0], emotion, room), *turns[1:])
        examples = self._fitting(turns, emotion, room, lambda examples: len(ids(turns, examples)))
        self.shown[tuple(history), emotion] = len(examples)
        return turns, tuple(ids(turns, examples)), None

    def _shorter(self, turn: Turn, emotion: str, room: int) -> Turn:
        if rest := turn.content[1 + len(turn.content) // 8 :].lstrip():
            return replace(turn, content=rest)
        tokens = len(self._ids([turn], emotion, ()))
        raise InputError(
            f"baseline.instruction: with {emotion} it takes {tokens} tokens, and model.context leaves {room} beside "
            "the reply; accepted: a shorter instruction or a larger model.context"
        )

    def fitting_row(self, history: Sequence[Turn], reply: Turn) -> Row | None:
        """Prompter.fitting_row, behind as many examples as fit too: examples go before turns of the dialogue do."""
        room = self.plain.context
        row = cache(lambda turns, examples: self._row(turns, reply, examples))
        turns = trim(tuple(history), lambda turns: len(row(turns, ())[0]) <= room)
        if len(row(turns, ())[0]) > room:
            return None
        return row(turns, self._fitting(turns, reply.emotion, room, lambda examples: len(row(turns, examples)[0])))

    def _fitting(
        self, turns: Sequence[Turn], emotion: str, room: int, length: Callable[[tuple[Example, ...]], int]
    ) -> tuple[Example, ...]:
        """The examples for a dialogue, the first, as many as `room` holds; `length` is what all takes with some."""
        examples = tuple(self.examples(turns[-1].content, emotion))
        if examples:
            # With what stands between them they take more: no more than these have to be tried.
            alone = (len(self.plain.encoded(self._shown(one, emotion))) for one in examples)
            examples = examples[: sum(total <= room for total in accumulate(alone, initial=length(()))) - 1]
        while examples and length(examples) > room:
            examples = examples[:-1]
        return examples

    def _shown(self, example: Example, emotion: str) -> str:
        return self.example.format(emotion=emotion, said=example.said, reply=example.reply)

    def _ids(self, history: Sequence[Turn], emotion: str, examples: Sequence[Example]) -> list[int]:
        prompter, turns = self._told(history, emotion, examples)
        return prompter.ids(turns, emotion)

    def _row(self, history: Sequence[Turn], reply: Turn, examples: Sequence[Example]) -> Row:
        prompter, turns = self._told(history, reply.emotion, examples)
        return prompter.reply_row(turns, reply)

    def _told(
        self, turns: Sequence[Turn], emotion: str, examples: Sequence[Example]
    ) -> tuple[Prompter, Sequence[Turn]]:
        """A Prompter and the turns for it whose prompt says all: the user's system prompt, instruction, examples."""
        own = [self.plain.system_prompt] if self.plain.system_prompt else []
        shown = (self._shown(one, emotion) for one in examples)
        text = "\n\n".join([*own, self.instruction.format(emotion=emotion), *shown])
        if self.has_place:
            return replace(self.plain, system_prompt=text), turns
        first, *rest = turns
        return replace(self.plain, system_prompt=None), [replace(first, content=f"{text}\n\n{first.content}"), *rest]
