"""Pairs that a reward model learns from: of two replies to one context the one that is preferred."""

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from emotune.core import git, processes, records, seeds
from emotune.core.dialogue import ASSISTANT, USER, Dialogue, Turn, bare, history, normal_form
from emotune.core.errors import InputError
from emotune.models import pins

# Made from human dialogues, by generate_prefs of an earlier run, by people; others are a file or a data set of the Hub.
CONTRAST, GENERATED, VOTES = "contrast", "generated", "votes"
WORDS = (CONTRAST, GENERATED, VOTES)
ACCEPTED = f"accepted: {CONTRAST}, {GENERATED}@commit, {VOTES}@sha256, file.jsonl@sha256, owner/name@commit"
# What of a commit is read.
EARLIER = "data/prefs"
# Of a file's dialogues one in so many is held out.
HELD_OUT = 10
# A wrong reply is looked for so often.
TRIES = 20
ROLES = (USER, ASSISTANT)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to what was said, `chosen` the better one; `emotion` is the one asked for, where that is known."""

    source: str
    dialogue: str
    history: tuple[Turn, ...]
    emotion: str | None
    chosen: str
    rejected: str


def contrast(
    dialogues: Sequence[Dialogue], history_turns: int, limit: int, seed: int, wrong: int = 1
) -> list[list[Pair]]:
    """At up to `limit` places, one a dialogue before a second of any, the human reply over `wrong` others.

    Each is a human reply in the same emotion to another dialogue, of another text: neither emotion, nor whether people
    wrote it, nor how long such replies are, tells which is which, but what was said does. A place of an emotion that
    has too few such replies is passed over.
    """
    rng = random.Random(seeds.key(seed, CONTRAST))
    rounds: dict[int, list[tuple[Dialogue, int]]] = defaultdict(list)
    in_emotion: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for d in dialogues:
        own = [i for i, turn in enumerate(d.turns) if turn.role == ASSISTANT]
        rng.shuffle(own)
        for number, i in enumerate(own):
            rounds[number].append((d, i))
            in_emotion[d.turns[i].emotion].append((d.id, d.turns[i].content))
    groups: list[list[Pair]] = []
    for d, i in (place for number in sorted(rounds) for place in rng.sample(rounds[number], len(rounds[number]))):
        reply = d.turns[i]
        others: dict[str, str] = {}
        for _ in range(TRIES * wrong):
            dialogue, text = rng.choice(in_emotion[reply.emotion])
            if len(others) < wrong and dialogue != d.id and normal_form(text) != normal_form(reply.content):
                others.setdefault(normal_form(text), text)
        if len(others) == wrong and len(groups) < limit:
            said = history(d.turns, i, history_turns)
            groups.append([Pair(CONTRAST, d.id, said, reply.emotion, reply.content, text) for text in others.values()])
    return groups


def foreign(source: str) -> list[Pair]:
    """The pairs of a JSONL file, a Hub data set (its split train) or an earlier run, at its pin; InputError without it.

    A row has `chosen` and `rejected`, and `history`, `context` or `prompt`: a text is said by the user, texts in turn,
    the user last; messages have a role and content. Replies may be messages that begin with what was said. `emotion`
    and `dialogue` may be missing. Two replies that are the same but for case and spaces are no pair.
    """
    name, _, pin = source.partition("@")
    pairs = []
    for where, row in _rows(name, pin, source):
        said, chosen, rejected = _said(row, where), _reply(row, "chosen", where), _reply(row, "rejected", where)
        key = hashlib.sha256("\0".join(turn.content for turn in said).encode()).hexdigest()[:16]
        if bare(chosen) != bare(rejected):
            dialogue, emotion = str(row.get("dialogue") or key), row.get("emotion")
            pairs.append(Pair(name, dialogue, said, emotion, chosen, rejected))
    return pairs


def once(pairs: Iterable[Pair], history_turns: int) -> list[Pair]:
    """Each pair where it stands first: of two replies behind the same last turns of one dialogue, whoever has them."""
    own: dict[Hashable, Pair] = {}
    for pair in pairs:
        said = tuple(turn.content for turn in pair.history[-history_turns:])
        own.setdefault((pair.dialogue, said, pair.chosen, pair.rejected), pair)
    return list(own.values())


def split(pairs: Iterable[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """The pairs to train on and those held out: a dialogue's are all in one of the two, by its name and the seed."""
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        parts[seeds.key(seed, "held out", pair.dialogue) % HELD_OUT == 0].append(pair)
    return parts


def _rows(name: str, pin: str, source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row, and where it stands."""
    if name == GENERATED:
        yield from _earlier(pin, source)
        return
    path = pins.located(name)
    if path.is_file():
        if pin != (content := records.sha256(path)):
            raise InputError(f"reward_model.pairs must pin {path}, whose sha256 is {content}; got {source}; {ACCEPTED}")
        for number, row in enumerate(records.read_jsonl(path), start=1):
            yield f"{path}: pair {number}", row
        return
    if name.count("/") != 1 or not re.fullmatch(r"[0-9a-f]{40}", pin):
        raise InputError(f"reward_model.pairs: no such file, and no data set at a commit: {source}; {ACCEPTED}")
    import datasets  # 1.3 s, and only this source needs it

    try:
        table = datasets.load_dataset(name, revision=pin, split="train")
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"reward_model.pairs: cannot load {source}: {' '.join(str(error).split())}") from error
    for number, row in enumerate(table, start=1):
        yield f"{source}: pair {number}", row


def _earlier(commit: str, source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The pairs that generate_prefs made for a commit of this repository, from DVC's cache or its remote."""
    root = str(processes.root())
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        last = git.ask("-C", root, "rev-parse", "HEAD") or "COMMIT"
        raise InputError(
            f"reward_model.pairs: generate_prefs reads this model, so to learn from what it makes now were a circle; "
            f"an earlier run's pairs are those of its commit: {GENERATED}@{last} (HEAD); got {source}; {ACCEPTED}"
        )
    import dvc.api  # a second, and only this source needs it
    from dvc.exceptions import DvcException

    for part in ("train", "validation"):
        path = f"{EARLIER}/{part}.jsonl"
        try:
            lines = dvc.api.read(path, repo=root, rev=commit, encoding="utf-8").split("\n")
        except (DvcException, OSError) as error:
            told = " ".join(str(error).split())
            raise InputError(f"reward_model.pairs: {source}: cannot read its {path}: {told}") from error
        for number, line in enumerate(filter(None, lines), start=1):
            yield f"{source}: {path}:{number}", json.loads(line)


def _said(row: Mapping[str, Any], where: str) -> tuple[Turn, ...]:
    """What a row's replies answer, from a user turn to a user turn."""
    said = next((row[key] for key in ("history", "context", "prompt") if row.get(key)), None)
    if said is None and isinstance(row.get("chosen"), list):
        said = row["chosen"][:-1]
    turns = [said] if isinstance(said, str) else said or []
    last = len(turns) - 1
    parsed = []
    for at, turn in enumerate(turns):
        own = {"role": ROLES[(last - at) % 2], "content": turn} if isinstance(turn, str) else turn
        if not isinstance(own, dict) or not isinstance(own.get("content"), str):
            raise InputError(f"{where}: turn {at + 1} has no text as content; found {turn!r}")
        if own.get("role") in ROLES:
            parsed.append(Turn(own["role"], own["content"], str(own.get("emotion") or "")))
    if not parsed or parsed[-1].role != USER:
        raise InputError(
            f"{where}: expected history, context or prompt that ends with a turn of the user; found {said!r}"
        )
    return history(parsed, len(parsed), len(parsed))


def _reply(row: Mapping[str, Any], side: str, where: str) -> str:
    """The text of one of a row's replies."""
    reply = row.get(side)
    if isinstance(reply, list) and reply and isinstance(reply[-1], dict):
        reply = reply[-1].get("content")
    if not isinstance(reply, str) or not reply.strip():
        raise InputError(f"{where}: expected a reply as {side}; found {reply!r}")
    return reply
