"""generate_prefs: the sft model answers, its judges choose: the preference data that dpo learns from."""

from emotune.core import processes, records
from emotune.core.contract import Dep, Inputs, Log, Metrics, Out
from emotune.core.errors import Refusal
from emotune.core.sections import Count, Section
from emotune.generation.params import Generation
from emotune.judges.verdicts import Judge
from emotune.models.params import Model
from emotune.preferences.params import Prefs, Reward
from emotune.prompts.prompter import Prompter

PARALLEL = True


class Params(Section):
    """Who answers, how the answers are rewarded, and what makes a pair."""

    generation: Generation
    history_turns: Count
    model: Model
    prefs: Prefs
    reward: Reward
    system_prompt: str | None


def main(p: Params, log: Log, inputs: Inputs, dialogues: Dep, base: Dep, sft: Dep, judges: Dep, out: Out) -> Metrics:
    """Sample candidates for train prompts, reward them, and write the best and the worst of each as a pair."""
    from emotune.models import loading
    from emotune.preferences import attempts, journal
    from emotune.preferences.candidates import engine_of, judging, sampling
    from emotune.preferences.outcomes import paired
    from emotune.preferences.pairs import audit, measure, rows, split

    def open_judges() -> tuple[Judge, Judge]:
        from emotune.judges import files

        rewarding = files.open_judge(judges / "reward.skops", p.reward.emotion_judge)
        return rewarding, files.open_judge(judges / "reward_gibberish.skops", p.reward.gibberish_judge)

    loading.assert_served(p.generation.engine, sft)
    names = records.read_json(dialogues / "labels.json")
    labels, neutral = names["labels"], names["neutral"]
    tokenizer = loading.load_tokenizer(sft, None)
    train = records.read_dialogues(dialogues / "train.jsonl")
    twin = p.prefs.sampling.twin(neutral)
    prompter = Prompter(tokenizer, p.system_prompt, p.model.context, p.history_turns, twin)
    prompts = attempts.choose_prompts(train, prompter, labels, p.prefs)
    sample = sampling(engine_of(p.generation, lambda: loading.load_tuned(base, p.model, sft), tokenizer), p.prefs)
    judge = judging(open_judges)
    # Judges run on this machine's cores: a GPU or a server can sample the next batch meanwhile.
    ahead = 0 if p.generation.engine == "local" and loading.device().type == "cpu" else 1
    made_of = attempts.made_of(inputs, p.model_dump(mode="json"))
    with journal.opened(processes.work("journal.sqlite"), made_of) as memo:
        mine = attempts.generate(processes.share(prompts), p.prefs, p.reward, sample, judge, memo, ahead)
    outcomes = paired(prompts, processes.gather(mine), p.prefs, p.reward)

    pairs = rows(prompts, outcomes)
    test = records.read_dialogues(dialogues / "test.jsonl")
    measured = measure(prompts, outcomes, pairs, labels, test, p.history_turns)
    if broken := audit(measured, p.prefs.audit):
        raise Refusal("\n".join(broken), measured)
    training, validation = split(pairs, p.prefs.validation)
    if processes.first():
        records.write_jsonl(out / "validation.jsonl", validation)
        records.write_jsonl(out / "train.jsonl", training)
    return measured
