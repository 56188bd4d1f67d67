"""few_shot: the same base model, shown train rows of the same task before each held-out instruction."""

from emotune.core import processes, records
from emotune.core.contract import DataSets, Dep, Log, Metrics, Out
from emotune.core.sections import Count
from emotune.evaluation.instruction_params import Instructed

PARALLEL = True


class Params(Instructed):
    """The same for every model, and how many examples stand before what it is asked."""

    shots: Count


def data_sets(p: Params) -> DataSets:
    """What it shows and asks."""
    return {"rows": ["train", p.evaluate.split]}


def main(p: Params, log: Log, rows: Dep, base: Dep, replies: Out) -> Metrics:
    """Ask the base model the held-out rows behind examples; write its replies, and what each output costs it."""
    from emotune.evaluation import instructions
    from emotune.models import loading
    from emotune.prompts.instructions import shots, template_of
    from emotune.prompts.prompter import Prompter

    prompter = Prompter(loading.load_tokenizer(base, template_of(p.format)), p.system_prompt, p.model.context)
    train = list(records.read_jsonl(rows / "train.jsonl"))
    asked = instructions.held_out(rows, p.evaluate)
    model = loading.load_base(base, p.model)
    examples = [shots(row, train, p.shots, p.evaluate.seed) for row in asked]
    answers = instructions.answer(model, prompter, asked, examples, p.format, p.evaluate, log)
    if processes.first():
        records.write_jsonl(replies, answers)
    return instructions.measure(answers, p.evaluate)
