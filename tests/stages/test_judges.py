"""Laws of the judges stage: what each judge learns from, and what is measured of a judge."""

import random
import string
from pathlib import Path

import numpy as np
import pytest
import skops.io

from emotune.core import records
from emotune.core.dialogue import Dialogue, alternate, to_record
from emotune.judges import files
from emotune.judges.halves import halves
from emotune.judges.params import EmotionChoice, JudgeChoice, Judges, JudgesOf
from emotune.judges.verdicts import Classifier
from emotune.stages.judges import TAUS, Data, Params, main, measure, measure_both, with_prior

LABELS = ("neutral", "happiness", "sadness")
EMBEDDED = JudgeChoice(name="embedded", revision=None, labels=None)
REWARD, EVALUATE = (
    JudgesOf(emotion_judge=EmotionChoice(**EMBEDDED.model_dump(), tau=tau), gibberish_judge=EMBEDDED)
    for tau in (0, None)
)
JUDGES = [("reward", "evaluate"), ("reward_gibberish", "evaluate_gibberish")]


def known(judge: Path, words: list[str]) -> set[str]:
    """Which words a trained judge has met: those that its own counts of the texts it was trained on hold."""
    steps = skops.io.load(judge, trusted=files.TRUSTED)
    if judge.stem.endswith("gibberish"):
        return {word for word in words if steps[0].counts_[steps[0]._keys([word], 1)].all()}
    idf = steps[1].idf_
    return {word for word in words if (idf[steps[0].transform([word]).indices] < idf.max()).all()}


@pytest.fixture(scope="module", params=[False, True])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], bool]:
    """Four judges of 24 dialogues, each with a word of its own in both turns, and whether they shared the dialogues."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("judges")
    words = ["".join(rng.choices(string.ascii_lowercase, k=9)) for _ in range(24)]
    talks = [
        Dialogue(f"talk-{n}", alternate((f"Is it the {word}?", f"It is the {word}."), (LABELS[n % 3],) * 2))
        for n, word in enumerate(words)
    ]
    for split in ("train", "validation", "test"):
        records.write_jsonl(folder / f"{split}.jsonl", map(to_record, talks))
    p = Params(
        data=Data(labels=LABELS, seed=7),
        evaluate=EVALUATE,
        judges=Judges(share_dialogues=request.param),
        reward=REWARD,
    )
    main(p, lambda *_: None, folder, folder / "out")
    return folder / "out", words, request.param


@pytest.mark.parametrize(("rewards", "evaluates"), JUDGES)
def test_a_judge_that_rewards_and_one_that_evaluates_learn_from_other_dialogues(
    trained: tuple[Path, list[str], bool], rewards: str, evaluates: str
) -> None:
    folder, words, shared = trained
    first, second = (known(folder / f"{name}.skops", words) for name in (rewards, evaluates))
    assert first
    assert second
    assert bool(first & second) == shared
    if rewards == "reward":
        assert first | second == set(words)


def test_both_halves_have_half_of_the_dialogues_of_a_rare_emotion() -> None:
    labels = ["neutral"] * 30 + ["sadness"] * 4 + ["happiness"] * 6
    talks = [Dialogue(f"{n}", alternate(("a", "b"), ("neutral", label))) for n, label in enumerate(labels)]
    both = halves(talks, 7)
    assert sorted((talk for half in both for talk in half), key=talks.index) == talks
    for half in both:
        assert [talk.turns[1].emotion for talk in half] == ["neutral"] * 15 + ["sadness"] * 2 + ["happiness"] * 3
    assert halves(talks, 8) != both


def test_the_stage_writes_the_prior_and_tau_of_both_emotion_judges_and_of_no_other(
    trained: tuple[Path, list[str], bool],
) -> None:
    folder, _, _ = trained
    assert sorted(path.name for path in folder.glob("*.json")) == ["evaluate.prior.json", "reward.prior.json"]
    for name, of in (("reward", REWARD), ("evaluate", EVALUATE)):
        written = records.read_json(folder / f"{name}.prior.json")
        assert written["prior"].keys() == set(LABELS)
        assert sum(written["prior"].values()) == pytest.approx(1, abs=2e-6)
        assert written["tau"] in TAUS
        judge = files.open_judge(folder / f"{name}.skops", of.emotion_judge)
        assert judge.tau == (0 if name == "reward" else written["tau"])


# A judge that expects two in three to be neutral: of happiness it hears 0.2, 0.4 or 0.6, of neutral the rest.
HAPPY = {"a": 0.2, "b": 0.4, "c": 0.6}
DOUBTFUL = Classifier(LABELS, lambda texts: np.array([[1 - HAPPY[text], HAPPY[text], 0.0] for text in texts]))
LEARNED = {"neutral": 0.65, "happiness": 0.35, "sadness": 0.0}


def test_tau_is_the_least_that_finds_human_emotions_best() -> None:
    gold = ["neutral", "happiness", "happiness"]
    # b is happy from 0.4 / 0.35 ** tau > 0.6 / 0.65 ** tau on, which is tau 0.66; a (0.2, 0.8) from 2.24 on.
    assert with_prior(DOUBTFUL, LEARNED, None, list("abc"), gold, LABELS).tau == 0.7
    assert with_prior(DOUBTFUL, LEARNED, None, list("ac"), ["neutral", "happiness"], LABELS).tau == 0
    assert with_prior(DOUBTFUL, LEARNED, 1.25, list("abc"), gold, LABELS).tau == 1.25


def test_a_judge_of_unknown_training_has_what_it_says_on_average_as_its_prior() -> None:
    learned = with_prior(DOUBTFUL, LEARNED, 0, list("abc"), LABELS, LABELS).prior
    # No share is 0: something is divided by it.
    assert learned == {"neutral": 0.65, "happiness": 0.35, "sadness": 1e-6}
    unknown = with_prior(DOUBTFUL, None, 0, list("abc"), LABELS, LABELS).prior
    assert unknown == {"neutral": 0.6, "happiness": 0.4, "sadness": 1e-6}


def test_an_emotion_judge_is_measured_with_tau_and_without() -> None:
    judge = with_prior(DOUBTFUL, LEARNED, 1, list("abc"), LABELS, LABELS)
    measured = measure_both(judge, list("abc"), ["neutral", "happiness", "happiness"], LABELS)
    assert (measured["accuracy"], measured["macro_recall"]) == (pytest.approx(2 / 3), 0.75)
    assert (measured["divided"]["accuracy"], measured["divided"]["macro_recall"]) == (1, 1)
    assert measured["divided"]["per_class"]["happiness"]["recall"] == 1
    assert (measured["tau"], measured["prior"]) == (1, judge.prior)


def test_measure_counts_what_a_judge_gets_right() -> None:
    said = {"one": "joy", "two": "joy", "three": "calm", "four": "calm"}
    measured = measure(
        lambda texts: [(said[text], 1.0) for text in texts],
        list(said),
        ["joy", "calm", "calm", "calm"],
        ["calm", "joy"],
    )
    assert measured["accuracy"] == 0.75
    assert measured["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert measured["weighted_f1"] == pytest.approx((3 * 0.8 + 2 / 3) / 4)
    assert measured["per_class"]["joy"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
