"""rounds: what another round of dpo made of control, by the judge that evaluates and on the validation split alone.

Whether a round pays is a choice, and choices do not look at test.
"""

import itertools

from emotune.core import processes, records
from emotune.core.contract import DataSets, Dep, Log, Metrics
from emotune.evaluation.params import Examination
from emotune.prompts.prompter import Prompter

PARALLEL = True


class Params(Examination):
    """The same as evaluate's, whatever split that asks."""


def data_sets(_: Params) -> DataSets:
    """What it asks."""
    return {"dialogues": ["validation"]}


def main(p: Params, log: Log, dialogues: Dep, base: Dep, judges: Dep, sft: Dep, dpo: Dep, second: Dep) -> Metrics:
    """Ask sft and both rounds of dpo the same questions; say what each step changed, and whether to go on."""
    from emotune.judges import files  # isort: skip  (skops searches every module that is loaded: before torch)

    from emotune.evaluation import measures
    from emotune.evaluation.answers import answer, with_the_same_references
    from emotune.models import loading

    names = records.read_json(dialogues / "labels.json")
    labels, neutral = names["labels"], names["neutral"]
    held_out = records.read_dialogues(dialogues / "validation.jsonl")
    evaluating = files.open_judge(judges / "evaluate.skops", p.evaluate.emotion_judge)
    gibberish = files.open_judge(judges / "evaluate_gibberish.skops", p.evaluate.gibberish_judge)
    twin = p.evaluate.sampling.twin(neutral)
    answers = {
        name: answer(
            loading.load_tuned(base, p.model, adapter),
            Prompter(loading.load_tokenizer(adapter, None), p.system_prompt, p.model.context, p.history_turns, twin),
            held_out,
            labels,
            p.evaluate,
            evaluating,
            gibberish,
            log,
        )
        for name, adapter in (("sft", sft), ("dpo", dpo), ("dpo_2", second))
    }
    answers = with_the_same_references(answers)
    if not processes.first():
        return {}
    measured = {name: measures.measure(rows, labels, neutral, p.evaluate) for name, rows in answers.items()}
    steps = {
        f"{before}_to_{after}": measures.compare(answers[before], answers[after], labels, neutral, p.evaluate)
        for before, after in itertools.pairwise(answers)
    }
    last = steps["dpo_to_dpo_2"]["control"]["macro_accuracy"]
    goes_on = last["low"] > 0
    control = ", ".join(f"{name} {of['control']['macro_accuracy']['value']:.3f}" for name, of in measured.items())
    changed = f"{last['difference']:+.3f} [{last['low']:+.3f}, {last['high']:+.3f}]"
    verdict = "it pays, and another may" if goes_on else "it does not pay: stop before it"
    print(f"control on validation: {control}; the second round changed it by {changed}: {verdict}", flush=True)
    return measured | {"paired": steps, "another_round": goes_on}
