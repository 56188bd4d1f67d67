"""baseline: what the base model answers, asked in its own chat format, which knows no emotion."""

from __future__ import annotations

from emotune.core import processes, records
from emotune.core.contract import Dep, Log, Metrics, Out
from emotune.core.sections import Count, Section
from emotune.evaluation.params import Evaluate
from emotune.judges.params import JudgeChoice
from emotune.models.params import Model

PARALLEL = True


class Params(Section):
    """The questions, and the model that is asked."""

    evaluate: Evaluate
    gibberish_judge: JudgeChoice
    history_turns: Count
    model: Model
    system_prompt: str | None


def main(
    p: Params, log: Log, dialogues: Dep, base: Dep, judges: Dep, replies: Out, control: Out, confusion: Out
) -> Metrics:
    """Ask the base model the test questions; write its replies and what they are worth."""
    from emotune.evaluation import measures
    from emotune.evaluation.answers import answer
    from emotune.judges import files
    from emotune.models import loading
    from emotune.prompts.prompter import Prompter

    names = records.read_json(dialogues / "labels.json")
    answers = answer(
        loading.load_base(base, p.model),
        Prompter(loading.load_tokenizer(base, None), p.system_prompt, p.model.context, p.history_turns),
        records.read_dialogues(dialogues / f"{p.evaluate.split}.jsonl"),
        names["labels"],
        p.evaluate,
        files.open_judge(judges / "evaluate.skops", p.evaluate.emotion_judge),
        files.open_judge(judges / "gibberish.skops", p.gibberish_judge),
        log,
    )
    if processes.first():
        records.write_jsonl(replies, answers.replies)
        records.write_jsonl(control, answers.control)
        records.write_csv(confusion, ["emotion", "judged"], answers.replies)
    return measures.measure(answers, names["labels"], names["neutral"], p.evaluate)
