"""few_shot: the same base model, shown train rows of the same task before each held-out instruction."""

from emotune.core import processes, records
from emotune.core.contract import DataSets, Dep, Log, Metrics, Out
from emotune.core.sections import Count, Section
from emotune.evaluation.params import Outputs
from emotune.models.params import Model
from emotune.prompts.params import Format

PARALLEL = True


class Params(Section):
    """The format of a prompt, what every model is asked, and how many examples stand before it."""

    evaluate: Outputs
    format: Format
    model: Model
    shots: Count
    system_prompt: str | None


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
