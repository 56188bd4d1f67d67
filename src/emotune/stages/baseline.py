"""baseline: what the base model answers in its own chat format, not told the emotion, told it, and shown examples."""

from collections.abc import Sequence
from string import Formatter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, field_validator

from emotune.core import processes, records
from emotune.core.contract import DataSets, Dep, Log, Metrics, Out
from emotune.core.dialogue import Dialogue
from emotune.core.sections import Count, Section
from emotune.evaluation.params import Examination
from emotune.prompts import few_shot
from emotune.prompts.few_shot import Prompted
from emotune.prompts.prompter import Prompter

PARALLEL = True


def _holding(*needed: str) -> AfterValidator:
    """Of a text: it has these placeholders, and of others {emotion} alone, so that `format` can fill it."""

    def check(text: str) -> str:
        try:
            text.format(**dict.fromkeys((*needed, "emotion"), ""))
            fields = {name for _, name, _, _ in Formatter().parse(text)}
        except (ValueError, LookupError, AttributeError):
            fields = set()
        if not set(needed) <= fields:
            wanted = " and ".join(f"{{{name}}}" for name in needed)
            raise ValueError(f"must hold {wanted}, of others {{emotion}} alone, and a brace twice; got {text!r}")
        return text

    return AfterValidator(check)


class Baseline(Section):
    ways: tuple[Literal["plain", "zero-shot", "few-shot"], ...]
    shots: Count
    examples: Literal["random", "similar"]
    seed: int
    instruction: Annotated[str, _holding("emotion")]
    example: Annotated[str, _holding("said", "reply")]

    @field_validator("ways")
    @classmethod
    def _plain_among_them(cls, ways: tuple[str, ...]) -> tuple[str, ...]:
        if "plain" not in ways or len(set(ways)) < len(ways):
            raise ValueError(f"must name plain, which every table begins with, and each way once; got {list(ways)}")
        return ways


class Params(Examination):
    """The same for every model, and how the base model is told an emotion."""

    baseline: Baseline


def data_sets(p: Params) -> DataSets:
    """What it asks, and what examples are of."""
    return {"dialogues": [p.evaluate.split, *(["train"] if "few-shot" in p.baseline.ways else [])]}


def main(
    p: Params,
    log: Log,
    dialogues: Dep,
    base: Dep,
    judges: Dep,
    replies: Out,
    control: Out,
    prompted: Out,
    confusion: Out,
) -> Metrics:
    """Ask the base model the test questions in each way; write its replies and what they are worth."""
    from emotune.judges import files  # isort: skip  (skops searches every module that is loaded: before torch)

    from emotune.evaluation import measures
    from emotune.evaluation.answers import Asking, answer, write
    from emotune.models import loading

    labels, neutral = (records.read_json(dialogues / "labels.json")[name] for name in ("labels", "neutral"))
    held_out = records.read_dialogues(dialogues / f"{p.evaluate.split}.jsonl")
    evaluating = files.open_judge(judges / "evaluate.skops", p.evaluate.emotion_judge)
    gibberish = files.open_judge(judges / "evaluate_gibberish.skops", p.evaluate.gibberish_judge)
    plain = Prompter(loading.load_tokenizer(base, None), p.system_prompt, p.model.context, p.history_turns)
    train = records.read_dialogues(dialogues / "train.jsonl") if "few-shot" in p.baseline.ways else []
    prompters = told(p.baseline, plain, train, held_out, labels)
    ways: dict[str, Asking] = {"plain": plain, **prompters}
    model = loading.load_base(base, p.model)
    answers = {
        way: answer(model, prompter, held_out, labels, p.evaluate, evaluating, gibberish, log)
        for way, prompter in ways.items()
    }
    if not processes.first():
        return {}
    measured = {way: measures.measure(own, labels, neutral, p.evaluate) for way, own in answers.items()}
    write(answers.pop("plain"), replies, control, confusion)
    with records.replacing_folder(prompted) as folder:
        for way, own in answers.items():
            records.write_jsonl(folder / f"{way}.jsonl", own.replies)
            records.write_jsonl(folder / f"{way}.control.jsonl", own.control)
    for way, prompter in prompters.items():
        measured[way]["prompts"] = of_prompts(prompter, p.baseline.shots if way == "few-shot" else 0)
    return measured.pop("plain") | measured


def told(
    p: Baseline, plain: Prompter, train: Sequence[Dialogue], held_out: Sequence[Dialogue], labels: Sequence[str]
) -> dict[str, Prompted]:
    """Who asks in each way that tells the emotion; examples are of train dialogues alone, none of which is asked."""
    prompters = {}
    if "zero-shot" in p.ways:
        prompters["zero-shot"] = Prompted(plain, p.instruction)
    if "few-shot" in p.ways:
        assert {d.id for d in train}.isdisjoint(d.id for d in held_out), "an example of a dialogue that is asked"
        pools = few_shot.by_emotion(train, labels)
        similar = p.examples == "similar"
        examples = few_shot.most_similar(pools, p.shots) if similar else few_shot.at_random(pools, p.shots, p.seed)
        prompters["few-shot"] = Prompted(plain, p.instruction, p.example, examples)
    return prompters


def of_prompts(prompter: Prompted, shots: int) -> dict[str, Any]:
    """How many examples the prompts had in the mean, and in how many prompts these were fewer than `shots`."""
    shown = list(prompter.shown.values())
    return {"of": len(shown), "shots_mean": sum(shown) / len(shown), "fewer_shots": sum(n < shots for n in shown)}
