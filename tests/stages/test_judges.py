"""Laws of the judges stage: what each judge learns from, and what is measured of a judge."""

import random
import string
from pathlib import Path

import pytest
import skops.io

from emotune.core import records
from emotune.core.dialogue import Dialogue, alternate, to_record
from emotune.judges import files
from emotune.judges.params import JudgeChoice, Judges, JudgesOf
from emotune.stages.judges import Data, Params, halves, main, measure

LABELS = ("neutral", "happiness", "sadness")
EMBEDDED = JudgeChoice(name="embedded", revision=None, labels=None)
BOTH = JudgesOf(emotion_judge=EMBEDDED, gibberish_judge=EMBEDDED)
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
    for split in ("train", "test"):
        records.write_jsonl(folder / f"{split}.jsonl", map(to_record, talks))
    p = Params(
        data=Data(labels=LABELS, seed=7), evaluate=BOTH, judges=Judges(share_dialogues=request.param), reward=BOTH
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
