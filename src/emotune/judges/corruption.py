"""Clean texts -> what a bad language model would have said instead."""

import random
import string
from collections.abc import Callable, Sequence

from emotune.judges.verdicts import CLEAN, GIBBERISH_LABELS, MILD, NOISE, SALAD


def with_corruptions(texts: Sequence[str], rng: random.Random) -> tuple[list[str], list[str]]:
    """Every text as it is and corrupted once, the three ways in turn: (rows, labels), twice as many as texts."""
    vocabulary = [word for text in texts for word in text.split()]
    rows, labels = [], []
    for index, text in enumerate(texts):
        label = GIBBERISH_LABELS[1 + index % 3]
        rows += [text, corrupt(text, label, rng, vocabulary)]
        labels += [CLEAN, label]
    return rows, labels


def corrupt(text: str, label: str, rng: random.Random, vocabulary: Sequence[str]) -> str:
    """What a bad language model would have said instead of `text`: never `text` itself, unless `label` is clean.

    Mild gibberish has one or a few wrong words, repeats itself or breaks off; word salad is words without grammar, or a
    loop; noise is pieces of words, characters, runs of punctuation, stray tags. `vocabulary` gives the wrong words.
    """
    if label == CLEAN:
        return text
    words = text.split() or [rng.choice(vocabulary)]
    ways = [way for way, (kind, least) in WAYS.items() if kind == label and len(words) >= least]
    while True:
        corrupted = " ".join(rng.choice(ways)(words, rng, vocabulary))
        if corrupted != " ".join(words):
            return corrupted


Words = Sequence[str]


def _repeat(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    size = rng.randint(1, min(3, len(words)))
    end = rng.randint(size, len(words))
    return [*words[:end], *list(words[end - size : end]) * rng.choice((1, 1, 2)), *words[end:]]


def _drop(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    # Short words: without "the" or "to" a sentence breaks, without an adjective it is still English.
    short = [i for i, word in enumerate(words[:-1]) if len(word) <= 4] or list(range(len(words) - 1))
    dropped = rng.sample(short, min(len(short), 1 + len(words) // 8))
    return [word for i, word in enumerate(words) if i not in dropped]


def _replace(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    wrong = rng.sample(range(len(words)), 1 + len(words) // 6)
    return [rng.choice(vocabulary) if i in wrong else word for i, word in enumerate(words)]


def _break_off(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    *kept, last = words[: rng.randint((len(words) + 1) // 2, len(words) - 1)]
    if rng.random() < 0.3:
        last = last[: rng.randint(1, len(last))]
    return [*kept, last.rstrip(".!?,;") or last]


def _shuffle(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    enough = [*words, *rng.choices(vocabulary, k=max(0, 5 - len(words)))]
    return rng.sample(enough, len(enough))


def _draw(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    return rng.choices(vocabulary, k=rng.randint(4, 16))


def _loop(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    length, loop = rng.randint(6, 16), list[str]()
    while len(loop) < length:
        start = rng.randrange(len(words))
        loop += list(words[start : start + rng.randint(1, 3)]) * rng.randint(2, 4)
    return loop


def _pieces(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    pieces = []
    for word in rng.choices([*words, *rng.choices(vocabulary, k=4)], k=rng.randint(4, 14)):
        cut = rng.randint(1, max(1, len(word) - 1))
        start, end = word[:cut], word[cut:] or word
        pieces.append(rng.choice((start, end, start + rng.choice(vocabulary)[-2:], end + start)))
    return pieces


def _characters(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    letters = string.ascii_lowercase + string.digits + "#@%&*"
    return ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(rng.randint(3, 12))]


def _punctuate(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    start = rng.randint(0, len(words))
    runs = ["".join(rng.choices(".,!?;:'\"-", k=rng.randint(3, 7))) for _ in range(rng.randint(2, 6))]
    return [*words[:start], *runs, *words[start : start + 2]]


def _tag(words: Words, rng: random.Random, vocabulary: Words) -> list[str]:
    tagged = list(words)
    for _ in range(rng.randint(1, 3)):
        tagged.insert(rng.randint(0, len(tagged)), rng.choice(TAGS))
    return tagged


TAGS = ("[INST]", "[/INST]", "[EMOTION]", "[/EMOTION]", "[C_EMOTION]", "<<SYS>>", "<s>", "</s>", "<unk>", "<pad>")
# What each way makes, and of how many words at least: "Yes." with a wrong word is another clean text.
WAYS: dict[Callable[[Words, random.Random, Words], list[str]], tuple[str, int]] = {
    _repeat: (MILD, 1),
    _drop: (MILD, 4),
    _replace: (MILD, 3),
    _break_off: (MILD, 4),
    _shuffle: (SALAD, 1),
    _draw: (SALAD, 1),
    _loop: (SALAD, 1),
    _pieces: (NOISE, 1),
    _characters: (NOISE, 1),
    _punctuate: (NOISE, 1),
    _tag: (NOISE, 1),
}
