"""generate_prefs: the sft model answers, its judges choose, or people did: the preference data that dpo learns from.

In another round it is the model that dpo made of it that answers, to prompts that the round before did not ask.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from emotune.core import processes, records
from emotune.core.contract import Dep, Inputs, Log, MaybeDep, Metrics, Out
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


def main(
    p: Params,
    log: Log,
    inputs: Inputs,
    dialogues: Dep,
    base: Dep,
    sft: Dep,
    judges: Dep,
    out: Out,
    before: MaybeDep = None,
) -> Metrics:
    """Sample candidates for train prompts, reward them, and write the pairs that they make.

    `before`, the metrics of the round before, says how many places for a reply were taken: this one goes on there.
    """
    from emotune.models import loading
    from emotune.preferences import attempts, human, journal, votes
    from emotune.preferences.candidates import Prompt, engine_of, judging, known_replies, sampling
    from emotune.preferences.outcomes import Outcome, paired
    from emotune.preferences.pairs import HUMAN, MODEL, VOTES, audit, measure, rows, split
    from emotune.preferences.what_if import what_if

    loading.assert_served(p.generation.engine, sft)
    labels, neutral = (records.read_json(dialogues / "labels.json")[name] for name in ("labels", "neutral"))
    tokenizer = loading.load_tokenizer(sft, None)
    train = records.read_dialogues(dialogues / "train.jsonl")
    twin = p.prefs.sampling.twin(neutral)
    prompter = Prompter(tokenizer, p.system_prompt, p.model.context, p.history_turns, twin)
    first = records.read_metrics(before)["places"] if before else 0
    by_people = p.prefs.source == "votes"
    prompts = [] if by_people else attempts.choose_prompts(train, prompter, labels, p.prefs, first)
    sample = sampling(engine_of(p.generation, lambda: loading.load_tuned(base, p.model, sft), tokenizer), p.prefs)
    judge = judging(partial(open_judges, judges, p.reward), known_replies(train))
    # Judges run on this machine's cores: a GPU or a server can sample the next batch meanwhile.
    ahead = 0 if p.generation.engine == "local" and loading.device().type == "cpu" else 1
    made_of = attempts.made_of(inputs, p.model_dump(mode="json"))
    with journal.opened(processes.work("journal.sqlite"), made_of) as memo:

        def search(asked: Sequence[Prompt], prefs: Prefs, begun: Sequence[Outcome] = ()) -> list[Outcome]:
            mine, ours = processes.share(asked), processes.share(begun)
            return processes.gather(attempts.generate(mine, prefs, p.reward, sample, judge, memo, ahead, ours))

        outcomes = search(prompts, p.prefs)
        if p.prefs.spare:
            outcomes = attempts.spend(prompts, outcomes, p.prefs, search)
        outcomes = paired(prompts, outcomes, p.prefs, p.reward)
        voted = votes.voted(p.prefs, labels, prompter, judge, p.reward)
        pairs = rows(prompts, outcomes) + rows(voted.prompts, voted.outcomes, VOTES)
        have, taken = Counter(pair["emotion"] for pair in pairs), {pair["id"] for pair in pairs}
        pairs += rows(*human.fill(have, taken, train, prompter, p.prefs, p.reward, search, judge), HUMAN)

    test = records.read_dialogues(dialogues / "test.jsonl")
    # No threshold makes or unmakes a pair that people made.
    thresholds = {} if by_people else {"what_if": what_if(prompts, outcomes, labels, p.prefs, p.reward)}
    if by_people:
        prompts, outcomes = voted.prompts, voted.outcomes
    whose = VOTES if by_people else MODEL
    measured = thresholds | voted.counts | measure(prompts, outcomes, pairs, labels, test, p.history_turns, whose)
    measured["places"] = first + (0 if by_people else attempts.places_of(p.prefs, labels))
    if broken := audit(measured, p.prefs.audit):
        raise Refusal("\n".join(broken), measured)
    training, validation = split(pairs, p.prefs.validation)
    if processes.first():
        records.write_jsonl(out / "validation.jsonl", validation)
        records.write_jsonl(out / "train.jsonl", training)
    return measured


def open_judges(trained: Path, r: Reward) -> tuple[Judge, Judge]:
    """The judges that reward, of emotions and of gibberish."""
    from emotune.judges import files

    rewarding = files.open_judge(trained / "reward.skops", r.emotion_judge)
    return rewarding, files.open_judge(trained / "reward_gibberish.skops", r.gibberish_judge)
