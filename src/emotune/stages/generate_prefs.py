"""generate_prefs: the sft model answers, its judges choose, or people did: the preference data that dpo learns from.

In another round it is the model that dpo made of it that answers, to prompts that the round before did not ask.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emotune.core import processes, records
from emotune.core.contract import Dep, Inputs, Log, MaybeDep, Metrics, Out
from emotune.core.errors import Refusal
from emotune.core.sections import Count, Section
from emotune.core.seeds import key
from emotune.generation.params import Generation
from emotune.judges.params import EmotionJudge
from emotune.judges.verdicts import Judge
from emotune.models.params import Model
from emotune.preferences.params import Prefs, Reward
from emotune.prompts.prompter import Prompter

if TYPE_CHECKING:
    from emotune.generation.engine import Engine
    from emotune.models.bradley_terry import RewardModel, Scale
    from emotune.models.lexical import Answer
    from emotune.preferences.candidates import Prompt
    from emotune.preferences.learned import Learned, Said
    from emotune.preferences.outcomes import Outcome
    from emotune.preferences.voted import Voted

PARALLEL = True
# What over-optimisation is measured of: first attempts at so many prompts; and what its curve has.
MEASURED = 150
BEST_OF_N = ["n", "kl", "reward", "control", "learned_score"]


class Params(Section):
    """Who answers, how the answers are rewarded, and what makes a pair."""

    evaluate: EmotionJudge
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
    reward: Dep,
    out: Out,
    best_of_n: Out,
    # The metrics of the round before: this one goes on behind the places for a reply that it took, and repeats no vote.
    before: MaybeDep = None,
) -> Metrics:
    """Sample candidates for train prompts, reward them, and write the pairs that they make."""
    from emotune.models import loading
    from emotune.preferences import attempts, human, learned, voted
    from emotune.preferences.candidates import engine_of, judging, known_replies, sampling
    from emotune.preferences.outcomes import paired
    from emotune.preferences.pairs import HUMAN, VOTES, audit, rows

    loading.assert_served(p.generation.engine, sft)
    labels, neutral = (records.read_json(dialogues / "labels.json")[name] for name in ("labels", "neutral"))
    tokenizer = loading.load_tokenizer(sft, None)
    train = records.read_dialogues(dialogues / "train.jsonl")
    prompter = Prompter(tokenizer, p.system_prompt, p.model.context, p.history_turns, p.prefs.sampling.twin(neutral))
    earlier: dict[str, Any] = records.read_metrics(before) if before else {"places": 0}
    by_people = p.prefs.source == "votes"
    prompts = [] if by_people else attempts.choose_prompts(train, prompter, labels, p.prefs, earlier["places"])
    engine = engine_of(p.generation, partial(loading.load_tuned, base, p.model, sft), tokenizer)
    sample, judge = sampling(engine, p.prefs), judging(partial(open_judges, judges, p.reward), known_replies(train))
    ask = partial(open_reward_model, p, base, reward, engine)
    made = attempts.made_of(inputs, p.model_dump(mode="json"))
    path, evaluating = processes.work("journal.sqlite"), {"evaluate": p.evaluate.emotion_judge.model_dump(mode="json")}
    with (
        learned.memos(path, made, inputs["reward"], p.model.context, ask) as (memo, said),
        learned.kept(path, made | evaluating, partial(heard_by, judges, p.evaluate)) as heard,
    ):
        term = said if p.reward.model else None

        def search(asked: Sequence[Prompt], prefs: Prefs, begun: Sequence[Outcome] = ()) -> list[Outcome]:
            return attempts.generate(asked, prefs, p.reward, sample, judge, memo, engine.ahead, begun, term)

        outcomes = search(prompts, p.prefs)
        outcomes = attempts.spend(prompts, outcomes, p.prefs, search) if p.prefs.spare else outcomes
        outcomes = paired(prompts, outcomes, p.prefs, p.reward)
        by_votes = voted.voted(p.prefs, labels, prompter, judge, p.reward, term, earlier.get("votes"))
        pairs = rows(prompts, outcomes) + rows(by_votes.prompts, by_votes.outcomes, VOTES)
        have, taken = Counter(pair["emotion"] for pair in pairs), {pair["id"] for pair in pairs}
        pairs += rows(*human.fill(have, taken, train, prompter, p.prefs, p.reward, search, judge, term), HUMAN)
        curve, chosen = over_optimised(prompts, outcomes, heard, p.prefs.seed, said)

    measured = measured_of(p, dialogues, labels, prompts, outcomes, pairs, by_votes) | {"best_of_n": chosen}
    measured["places"] = earlier["places"] + (0 if by_people else attempts.places_of(p.prefs, labels))
    if broken := audit(measured, p.prefs.audit):
        raise Refusal("\n".join(broken), measured)
    if processes.first():
        write(pairs, p.prefs, out)
        records.write_csv(best_of_n, BEST_OF_N, curve)
    return measured


def write(pairs: list[dict[str, Any]], p: Prefs, out: Path) -> None:
    """The pairs to train on and those that validate, apart."""
    from emotune.preferences.pairs import split

    for name, part in zip(("train", "validation"), split(pairs, p.validation), strict=True):
        records.write_jsonl(out / f"{name}.jsonl", part)


def measured_of(
    p: Params,
    dialogues: Path,
    labels: Sequence[str],
    prompts: Sequence[Prompt],
    outcomes: Sequence[Outcome],
    pairs: Sequence[Mapping[str, Any]],
    voted: Voted,
) -> dict[str, Any]:
    """What the pairs are, and what other thresholds would give: none makes or unmakes a pair that people made."""
    from emotune.preferences.pairs import MODEL, VOTES, measure
    from emotune.preferences.what_if import what_if

    test = records.read_dialogues(dialogues / "test.jsonl")
    if p.prefs.source == "votes":
        return voted.counts | measure(voted.prompts, voted.outcomes, pairs, labels, test, p.history_turns, VOTES)
    thresholds = {"what_if": what_if(prompts, outcomes, labels, p.prefs, p.reward)}
    return thresholds | voted.counts | measure(prompts, outcomes, pairs, labels, test, p.history_turns, MODEL)


def over_optimised(
    prompts: Sequence[Prompt],
    outcomes: Sequence[Outcome],
    heard: Said[str],
    seed: int,
    learned: Learned,
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """What the best of n by the reward is worth, of first attempts at up to MEASURED prompts: its curve and summary.

    `control` is how often the judge that evaluates, which had no part in choosing, has `heard` the emotion asked for.
    """
    from emotune.evaluation import best_of_n

    if not prompts:
        return [], {}
    drawn = random.Random(key(seed, "best of n")).sample(range(len(prompts)), min(MEASURED, len(prompts)))
    some = [(prompts[n], outcomes[n].candidates[0]) for n in sorted(drawn)]
    own = processes.share(some)
    attempts, said = [(prompt, 1) for prompt, _ in own], [[reply.text for reply in replies] for _, replies in own]
    emotions = zip(own, heard(attempts, said), strict=True)
    obeys = [[float(emotion == prompt.emotion) for emotion in of] for (prompt, _), of in emotions]
    rows = list(zip(obeys, learned(attempts, said), strict=True))
    by = [[reply.reward for reply in candidates] for _, candidates in some]
    control, scores = (list(part) for part in zip(*processes.gather(rows), strict=True))
    measures = {"reward": by, "control": control, "learned_score": scores}
    dialogues = [prompt.dialogue for prompt, _ in some]
    return best_of_n.curve(by, measures), best_of_n.summary(dialogues, by, measures)


def heard_by(judges: Path, p: EmotionJudge, answers: Sequence[Answer]) -> list[str]:
    """The emotion of each reply, by the judge that evaluates."""
    if not answers:
        return []
    from emotune.judges import files

    judge = files.open_judge(judges / "evaluate.skops", p.emotion_judge)
    return [emotion for emotion, _ in judge([reply for _, reply in answers])]


def open_judges(trained: Path, r: Reward) -> tuple[Judge, Judge]:
    """The judges that reward, of emotions and of gibberish."""
    from emotune.judges import files

    rewarding = files.open_judge(trained / "reward.skops", r.emotion_judge)
    return rewarding, files.open_judge(trained / "reward_gibberish.skops", r.gibberish_judge)


def open_reward_model(p: Params, base: Path, reward: Path, engine: Engine) -> tuple[RewardModel, Scale]:
    """The reward model; asked in the end alone, in the place of the one that answered: two are twice the memory."""
    from emotune.models import bradley_terry

    if not p.reward.model:
        engine.close()
    return bradley_terry.opened(base, p.model, reward, p.system_prompt)
