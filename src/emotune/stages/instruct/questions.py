"""questions: question and answer rows out of a folder of raw text, by rules or by a model."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from emotune.core import processes, records, seeds
from emotune.core.contract import Log, Metrics, Out
from emotune.core.errors import InputError
from emotune.core.sections import Section
from emotune.data import sources
from emotune.data.instructions import Row
from emotune.data.passages import SUFFIXES, Block, blocks
from emotune.data.questions import Question, in_reply, is_found, passages, questions
from emotune.generation.params import Generation, Sampling
from emotune.models.params import Model

PASSAGE = "{passage}"
NO_QUESTION, NOT_FOUND, UNFINISHED, TOO_LONG = "no_question", "not_in_passage", "unfinished", "too_long"
# With the libraries, what decides a reply beside its prompt, the model and the sampling.
PACKAGE = Path(__file__).parents[2]
CODE, LIBRARIES = ("generation", "models"), ("torch", "transformers")


class Questions(Section):
    path: str | None
    revision: str | None
    engine: Literal["rules", "model"]
    template: str
    generation: Generation
    model: Model
    sampling: Sampling
    seed: int

    @field_validator("template")
    @classmethod
    def _has_passage(cls, value: str) -> str:
        if PASSAGE not in value:
            raise ValueError(f"must hold {PASSAGE}, where the passage stands, got {value!r}")
        return value

    @model_validator(mode="after")
    def _unguided(self) -> Self:
        if self.sampling.guidance != 1:
            raise ValueError(f"sampling.guidance must be 1: a passage has no emotion, got {self.sampling.guidance}")
        return self


class Params(Section):
    """All of `questions`."""

    questions: Questions


def main(p: Params, log: Log, out: Out) -> Metrics:
    """Write the rows, none where no folder is named, and count them by rule and by file."""
    q = p.questions
    files = sources.pinned_files(q.path, q.revision, SUFFIXES, "questions") if q.path else {}
    read = {name: blocks(name, file) for name, file in files.items()}
    dropped: Counter[str] = Counter()
    asked = {name: passages(own) for name, own in read.items()}
    made = by_model(asked, q, dropped) if q.engine == "model" else {name: questions(own) for name, own in read.items()}
    rows: dict[str, tuple[Row, str]] = {}
    for name, question in ((name, question) for name, own in made.items() for question in own):
        row = row_of(name, question, len(rows))
        dropped["duplicate"] += row.prompt in rows
        rows.setdefault(row.prompt, (row, question.rule))
    records.write_jsonl(out, (row._asdict() | {"rule": rule} for row, rule in rows.values()))
    return {
        "rows": len(rows),
        "rules": dict(Counter(rule for _, rule in rows.values())),
        "files": {name: sum(row.source.rpartition(":")[0] == name for row, _ in rows.values()) for name in files},
        "passages": sum(map(len, asked.values())),
        "dropped": dict(+dropped),
    }


def row_of(name: str, question: Question, number: int) -> Row:
    """The row of a question; a turn of a chat has what was said before as its input."""
    task = "chat" if question.rule == "chat" else "question"
    source = f"{name}:{question.line}"
    return Row(f"question-{number:05d}", task, question.question, question.before, question.answer, source)


def by_model(asked: Mapping[str, Sequence[Block]], q: Questions, dropped: Counter[str]) -> dict[str, list[Question]]:
    """What a model asks and answers of each passage, less what is dropped and counted, by reason.

    InputError where nothing is left: the template and the model do not go together.
    """
    places = [(name, block) for name, own in asked.items() for block in own]
    texts = [q.template.replace(PASSAGE, block.text) for _, block in places]
    made: dict[str, list[Question]] = {name: [] for name in asked}
    for (name, block), reply in zip(places, replies(texts, q), strict=True):
        for question, answer, fault in checked(block.text, reply, q.template):
            if fault:
                dropped[fault] += 1
            else:
                made[name].append(Question("model", question, answer, block.line))
    if places and not any(made.values()):
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.most_common())
        raise InputError(
            f"questions: none of the {len(places)} passages gave a row ({reasons}); questions.template must bring the "
            "model to answer in the form `Q: ...? A: ...`, in words of the passage"
        )
    return made


# A reply as the journal keeps it: text, tokens, whether it ended; None where the passage leaves no room for one.
Kept = tuple[str, int, bool] | None


def checked(passage: str, reply: Kept, template: str) -> Iterator[tuple[str, str, str | None]]:
    """Each question and answer of a reply, and what is wrong with it."""
    if reply is None:
        yield "", "", TOO_LONG
        return
    text, _, ended = reply
    pairs = in_reply(text, template)
    if not pairs:
        yield "", "", NO_QUESTION
    for place, (question, answer) in enumerate(pairs, start=1):
        cut = not ended and place == len(pairs) and not answer.endswith((".", "!", "?"))
        yield question, answer, UNFINISHED if cut else None if is_found(answer, passage) else NOT_FOUND


def replies(texts: Sequence[str], q: Questions) -> list[Kept]:
    """A reply to each text, from the journal where it holds it: a text is asked once, whenever a run was killed."""
    from emotune.generation.engine import Request
    from emotune.models import loading
    from emotune.preferences import journal
    from emotune.preferences.candidates import engine_of

    with TemporaryDirectory() as folder, journal.opened(processes.work("journal.sqlite"), made_of(q)) as memo:
        base = base_of(q.model, Path(folder)) if q.generation.engine == "local" else None
        tokenizer = loading.load_tokenizer(base, None) if base else None
        names = {hashlib.sha256(text.encode()).hexdigest(): text for text in texts}
        there = {name: value for (name, _), value in memo.find_many([(name, 1) for name in names]).items()}
        known, waiting = len(there), {}
        for name, text in names.items():
            ids = tuple(tokenizer(text)["input_ids"]) if tokenizer else ()
            fits = not tokenizer or len(ids) + q.sampling.max_new_tokens <= q.model.context
            if fits and name not in there:
                waiting[name] = Request(ids, (seeds.key(q.seed, text),), text)
        engine = engine_of(q.generation, lambda: loading.load_base(Path(str(base)), q.model), tokenizer)
        while waiting:
            requests = list(waiting.values())
            count = engine.at_once(requests, q.sampling)
            came = [astuple(reply) for [reply] in engine.replies(requests[:count], q.sampling)]
            batch = dict(zip(list(waiting)[:count], came, strict=True))
            memo.keep((name, 1, reply) for name, reply in batch.items())
            there |= batch
            waiting = {name: request for name, request in waiting.items() if name not in batch}
        print(f"questions: {len(there) - known} passages asked, {known} taken from the journal", flush=True)
    kept = [there.get(hashlib.sha256(text.encode()).hexdigest()) for text in texts]
    return [None if reply is None else (reply[0], reply[1], reply[2]) for reply in kept]


def base_of(model: Model, folder: Path) -> Path:
    """Where the loader finds the model: the weights of the package, or a pin of somebody else's in `folder`."""
    from emotune.models import pins

    if model.base == pins.EMBEDDED:
        return pins.WEIGHTS
    records.write_json(folder / pins.BASE_FILE, pins.resolve(model.base, model.revision))
    return folder


def made_of(q: Questions) -> dict[str, Any]:
    """All that decides a reply beside its prompt: the journal's key."""
    values = q.model_dump(mode="json")
    return {
        "questions": {key: values[key] for key in ("generation", "model", "sampling", "seed")},
        "code": {name: records.digest(PACKAGE / name)[:16] for name in CODE},
        "versions": {name: version(name) for name in LIBRARIES},
    }
