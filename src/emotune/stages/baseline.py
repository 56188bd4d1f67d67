"""baseline: what the base model answers, asked in its own chat format, which knows no emotion."""

from emotune.core import processes, records
from emotune.core.contract import DataSets, Dep, Log, Metrics, Out
from emotune.evaluation.params import Examination
from emotune.prompts.prompter import Prompter

PARALLEL = True


class Params(Examination):
    """The same for every model."""


def data_sets(p: Params) -> DataSets:
    """What it asks."""
    return {"dialogues": [p.evaluate.split]}


def main(
    p: Params, log: Log, dialogues: Dep, base: Dep, judges: Dep, replies: Out, control: Out, confusion: Out
) -> Metrics:
    """Ask the base model the test questions; write its replies and what they are worth."""
    from emotune.judges import files  # isort: skip  (skops searches every module that is loaded: before torch)

    from emotune.evaluation import measures
    from emotune.evaluation.answers import answer, write
    from emotune.models import loading

    names = records.read_json(dialogues / "labels.json")
    answers = answer(
        loading.load_base(base, p.model),
        Prompter(loading.load_tokenizer(base, None), p.system_prompt, p.model.context, p.history_turns),
        records.read_dialogues(dialogues / f"{p.evaluate.split}.jsonl"),
        names["labels"],
        p.evaluate,
        files.open_judge(judges / "evaluate.skops", p.evaluate.emotion_judge),
        files.open_judge(judges / "evaluate_gibberish.skops", p.evaluate.gibberish_judge),
        log,
    )
    if not processes.first():
        return {}
    write(answers, replies, control, confusion)
    return measures.measure(answers, names["labels"], names["neutral"], p.evaluate)
