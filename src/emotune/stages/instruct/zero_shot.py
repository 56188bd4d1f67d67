"""zero_shot: what the base model makes of held-out instructions before anything is done to it."""

from emotune.core import processes, records
from emotune.core.contract import DataSets, Dep, Log, Metrics, Out
from emotune.evaluation.instruction_params import Instructed

PARALLEL = True


class Params(Instructed):
    """The same for every model."""


def data_sets(p: Params) -> DataSets:
    """What it asks."""
    return {"rows": [p.evaluate.split]}


def main(p: Params, log: Log, rows: Dep, base: Dep, replies: Out) -> Metrics:
    """Ask the base model the held-out rows; write its replies, and what each output costs it."""
    from emotune.evaluation import instructions
    from emotune.models import loading
    from emotune.prompts.instructions import template_of
    from emotune.prompts.prompter import Prompter

    prompter = Prompter(loading.load_tokenizer(base, template_of(p.format)), p.system_prompt, p.model.context)
    asked = instructions.held_out(rows, p.evaluate)
    model = loading.load_base(base, p.model)
    answers = instructions.answer(model, prompter, asked, [[] for _ in asked], p.format, p.evaluate, log)
    if processes.first():
        records.write_jsonl(replies, answers)
    return instructions.measure(answers, p.evaluate)
