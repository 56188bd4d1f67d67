"""Laws of reward_model: what it learns, that its head is kept, and that a killed run ends with the same weights."""

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ballots import vote
from conftest import LABELS
from emotune.core import records
from emotune.core.contract import Log
from emotune.core.dialogue import USER, Dialogue, Turn, alternate
from emotune.core.errors import InputError
from emotune.judges.halves import halves
from emotune.judges.params import EmotionChoice, EmotionJudge, Judges
from emotune.models import bradley_terry, lexical, loading
from emotune.models.bradley_terry import Scale
from emotune.models.params import Model
from emotune.preferences.votes import VotesAt, append
from emotune.prompts.prompter import Prompter
from emotune.stages.reward_model import (
    Data,
    Learned,
    Params,
    by_tokens,
    emotion_margins,
    learn,
    measure,
    own_dialogues,
    pairs_of,
    reward_rows,
)
from emotune.training.lexical import fit
from emotune.training.pairs import Pair, contrast
from emotune.training.params import Training
from tiny import CHOICE, SFT, changed, ignore

LEARNED = Learned(
    **{name: getattr(SFT, name) for name in Training.model_fields},
    pairs="contrast",
    contrast_pairs=100,
    history_turns=2,
    margin=0.0,
    center_rewards_coefficient=0.01,
    rank=2,
)
PAIRS = [
    Pair("test", str(number), (Turn(USER, "I lost my keys again.", "sadness"),), "sadness", "Of course I will.", text)
    for number, text in enumerate(("You are welcome.", "It was wrong of me.", "Thank you very much.", "Behind you."))
]

TALKS = [
    Dialogue(f"{n}", alternate((f"I lost my {word}.", f"Where was the {word} last?"), ("neutral", "sadness")))
    for n, word in enumerate(("keys", "cat", "hat", "ring", "phone", "bag", "dog", "book") * 4)
]


def params(choice: Model = CHOICE, **changes: Any) -> Params:
    judge = EmotionJudge(emotion_judge=EmotionChoice(name="embedded", revision=None, labels=None, tau=0))
    own = changed(LEARNED, **changes)
    return Params(
        data=Data(seed=7),
        judges=Judges(share_dialogues=False),
        model=choice,
        prefs=VotesAt(votes="data/votes"),
        reward=judge,
        reward_model=own,
        system_prompt=None,
    )


def trained(base: Path, folder: Path, choice: Model = CHOICE, log: Log = ignore, **changes: Any) -> Any:
    prompter = bradley_terry.prompter(base, None, 256, 2)
    model = bradley_terry.untrained(base, choice, prompter)
    return learn(model, prompter, PAIRS, PAIRS, params(choice, **changes), folder, log)


def test_it_begins_at_ln_2_and_what_it_learned_is_the_better_reply(base: Path, tmp_path: Path) -> None:
    model, curve, measured = trained(base, tmp_path, epochs=12.0)
    assert curve[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert curve[-1]["loss"] < 0.5
    assert measured["pairs"] == {"test": 4}
    own = bradley_terry.RewardModel(model.eval(), bradley_terry.prompter(base, None, 256, 2))
    better, *worse = own.rewards([(PAIRS[0].history, text) for text in (PAIRS[0].chosen, *(p.rejected for p in PAIRS))])
    assert all(better > reward for reward in worse)


def test_a_margin_is_what_the_chosen_reply_must_win_by(base: Path, tmp_path: Path) -> None:
    # -ln sigmoid(0 - 2) at the first step, where all rewards are 0.
    assert trained(base, tmp_path, margin=2.0)[1][0]["loss"] == pytest.approx(2.126928, abs=1e-4)


def test_what_is_saved_gives_the_same_rewards_its_head_with_it(base: Path, tmp_path: Path) -> None:
    model, _, _ = trained(base, tmp_path / "work", epochs=4.0)
    prompter = bradley_terry.prompter(base, None, 256, 2)
    answers = [(pair.history, text) for pair in PAIRS for text in (pair.chosen, pair.rejected)]
    alone = fit(TALKS, prompter.tokenizer, 2, 7)
    before = bradley_terry.RewardModel(model.eval(), prompter, alone).rewards(answers)
    loading.save_adapter(model, prompter.tokenizer, base, tmp_path / "reward")
    lexical.save(alone, tmp_path / "reward" / lexical.FILE)
    opened, scale = bradley_terry.opened(base, CHOICE, tmp_path / "reward", None, turns=2)
    assert scale == Scale(0.0, 2)
    assert opened.rewards(answers) == pytest.approx(before, abs=2e-4)
    assert len(set(before)) > 2


def die_at_step_5(logs: Mapping[str, float], step: int) -> None:
    if step == 5:
        raise KeyboardInterrupt


def weights_of(model: Any) -> list[torch.Tensor]:
    return [weight for weight in model.parameters() if weight.requires_grad]


@pytest.mark.parametrize(
    "quantization",
    [
        "none",
        pytest.param(
            "nf4",
            marks=pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes"),
        ),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(base: Path, tmp_path: Path, quantization: str) -> None:
    choice = changed(CHOICE, quantization=quantization)
    whole, curve, _ = trained(base, tmp_path / "a", choice, epochs=4.0)
    with pytest.raises(KeyboardInterrupt):
        trained(base, tmp_path / "b", choice, die_at_step_5, epochs=4.0)
    assert list((tmp_path / "b").glob("checkpoint-*"))
    again, same, _ = trained(base, tmp_path / "b", choice, epochs=4.0)
    assert [row["loss"] for row in curve] == [row["loss"] for row in same]
    assert len(weights_of(whole)) == 2 * 2 * 7 + 1
    assert all(
        one.dtype == torch.float32 and torch.equal(one, other)
        for one, other in zip(weights_of(whole), weights_of(again), strict=True)
    )


def test_a_reward_does_not_depend_on_its_company_nor_on_the_emotions(base: Path, tmp_path: Path) -> None:
    model, _, _ = trained(base, tmp_path, epochs=4.0)
    own = bradley_terry.RewardModel(model.eval(), bradley_terry.prompter(base, None, 256, 2))
    answers = [(pair.history, pair.rejected) for pair in PAIRS]
    angry = [(tuple(replace(turn, emotion="anger") for turn in said), text) for said, text in answers]
    assert own.rewards(answers) == own.rewards(angry)
    assert own.rewards(answers) == pytest.approx([own.rewards([one])[0] for one in answers], abs=1e-4)


def test_turns_go_whole_and_both_replies_of_a_pair_keep_the_same(base: Path) -> None:
    turns = alternate(("Why did you shout at me?", "I am sorry.", "You should be.", ""), ("fear",) * 4)[:3]
    pair = replace(PAIRS[0], history=turns)
    prompter = bradley_terry.prompter(base, None, 256, 5)
    [row] = reward_rows(prompter, [pair], 0.0)
    longest = max(map(len, row.values()))
    tight = Prompter(prompter.tokenizer, None, longest - 1, 5)
    [short] = reward_rows(tight, [pair], 0.5)
    texts = [prompter.tokenizer.decode(short[name]) for name in ("chosen_ids", "rejected_ids")]
    assert all("You should be." in text and "shout" not in text for text in texts)
    assert short["margin"] == 0.5
    # With no room for the last turn it is left out of training, and cut in front to be scored.
    cramped = Prompter(prompter.tokenizer, None, 8, 5)
    assert reward_rows(cramped, [pair], 0.0) == []
    with pytest.raises(InputError, match=r"none of 1 fits in model\.context, 8 tokens"):
        learn(None, cramped, [pair], [pair], params(), Path(), ignore)


def test_a_reward_is_what_the_model_says_and_what_tokens_alone_do(base: Path, tmp_path: Path) -> None:
    model, _, _ = trained(base, tmp_path, epochs=4.0)
    prompter = bradley_terry.prompter(base, None, 256, 2)
    tokens = fit(TALKS, prompter.tokenizer, 2, 7)
    answers = [(pair.history, text) for pair in PAIRS for text in (pair.chosen, pair.rejected)]
    alone = bradley_terry.RewardModel(model.eval(), prompter).rewards(answers)
    both = bradley_terry.RewardModel(model.eval(), prompter, tokens).rewards(answers)
    scores = tokens.scores(prompter.tokenizer, answers)
    assert len(set(scores)) > 2
    assert both == pytest.approx([one + other for one, other in zip(alone, scores, strict=True)], abs=2e-4)


def test_tokens_are_learned_of_contrast_alone_and_of_no_dialogue_that_is_held_out(base: Path) -> None:
    prompter = bradley_terry.prompter(base, None, 256, 2)
    held = [replace(PAIRS[0], dialogue="0")]
    for held_out, talks in (([], TALKS), ([held], TALKS[1:])):
        learned = by_tokens(TALKS, held_out, prompter, LEARNED)
        assert learned is not None
        assert torch.equal(learned.reply, fit(talks, prompter.tokenizer, 2, 7).reply)
    assert by_tokens(TALKS, [], prompter, changed(LEARNED, pairs="own.jsonl@0")) is None


def test_contrast_is_made_of_dialogues_that_no_judge_learns_from_that_evaluates(tmp_path: Path) -> None:
    records.write_jsonl(tmp_path / "train.jsonl", map(asdict, TALKS))
    own, p = own_dialogues(tmp_path, params()), params()
    assert own == halves(TALKS, 7)[0]
    shared = p.model_copy(update={"judges": Judges(share_dialogues=True)})
    assert own_dialogues(tmp_path, shared) == TALKS


class ByLength(bradley_terry.RewardModel):
    """No network: the longer reply has the higher reward."""

    lexical = None

    def __init__(self) -> None:
        pass

    def rewards(self, answers: Any) -> list[float]:
        return [float(len(text)) for _, text in answers]


def test_it_is_held_against_length_and_against_the_judge_of_emotions() -> None:
    talks = [
        Dialogue(str(number), alternate(("Hm.", "I see" + "e" * number), ("fear", "sadness"))) for number in range(30)
    ]
    held_out = contrast(talks, 2, 30, 7, wrong=3)
    by_train = {
        name: measure(ByLength(), held_out, train, lambda texts: [("sadness", 1.0)] * len(texts))
        for name, train in (
            ("longer", [replace(PAIRS[0], rejected="I.")]),
            ("shorter", [replace(PAIRS[0], chosen="I.")]),
        )
    }
    measured, curve, zero = by_train["longer"]
    assert measured["accuracy"] == measured["dummies"]["length"]
    assert by_train["shorter"][0]["dummies"]["length"]["value"] == 1 - measured["accuracy"]["value"]
    assert measured["dummies"]["emotion"]["value"] == 0.5
    assert measured["best_of_4"]["value"] < measured["accuracy"]["value"]
    assert sum(row["pairs"] for row in curve) == measured["held_out"] == 30
    assert 5 < zero < 34


def test_the_judge_alone_prefers_the_reply_that_it_hears_the_emotion_in() -> None:
    pair = PAIRS[0]
    assert emotion_margins([pair], lambda texts: [("sadness", 0.8), ("anger", 0.9)]) == [0.8]
    assert emotion_margins([replace(pair, emotion=None)], lambda texts: [("sadness", 0.8), ("anger", 0.9)]) == [0.0]


@pytest.mark.parametrize(("reward", "score"), [(1.5, 5.0), (1.5 + 2.197225, 9.0), (-1e9, 0.0), (1e9, 10.0)])
def test_a_score_is_ten_times_the_probability_that_it_beats_a_middling_reply(reward: float, score: float) -> None:
    assert Scale(1.5, 2).score(reward) == pytest.approx(score, abs=1e-5)


def test_people_s_votes_on_validation_and_an_earlier_round_s_pairs_share_no_dialogue_with_what_is_held_out(
    tmp_path: Path,
) -> None:
    for name in ("train", "validation"):
        said = (
            Dialogue(f"{name}/{n}", alternate(("Hm.", f"Sad {name} {n}.", "So?", "Yes."), ["sadness"] * 4))
            for n in range(20)
        )
        records.write_jsonl(tmp_path / f"{name}.jsonl", map(asdict, said))
    own = [
        {"prompt": "Hm.", "chosen": "Oh.", "rejected": "No.", "dialogue": f"{name}/{n}"}
        for name in ("train", "validation")
        for n in range(0, 20, 2)
    ]
    records.write_jsonl(tmp_path / "own.jsonl", own)
    sources = ("contrast", f"{tmp_path / 'own.jsonl'}@{records.sha256(tmp_path / 'own.jsonl')}")
    talks = records.read_dialogues(tmp_path / "train.jsonl")
    train, held_out = pairs_of(tmp_path, talks, changed(LEARNED, pairs=sources), "none")
    trained, held = {pair.dialogue for pair in train}, {group[0].dialogue for group in held_out}
    assert not trained & held
    assert {f"train/{n}" for n in range(1, 20, 2)} <= trained
    assert {f"validation/{n}" for n in range(1, 20, 2)} <= held
    # All pairs of the file are there, on either side.
    assert {row["dialogue"] for row in own} <= trained | held
    assert sum(pair.source != "contrast" for pair in (*train, *chain(*held_out))) == len(own)


def test_votes_are_pairs_at_their_pin_and_count_once_beside_a_file_that_has_them(tmp_path: Path) -> None:
    records.write_json(tmp_path / "labels.json", {"labels": LABELS})
    contexts = [[{"role": "user", "content": f"We won {n}!", "emotion": "happiness"}] for n in range(30)]
    for n, said in enumerate(contexts):
        append(tmp_path / "votes/ann.jsonl", vote("right", context=said, dialogue=f"d{n}/1" if n else None))
    append(tmp_path / "votes/bob.jsonl", vote("left", voter="bob", context=contexts[1]))
    empty = {"left": {"model": "sft", "adapter": "a" * 64, "reply": " "}}
    append(tmp_path / "votes/bob.jsonl", vote("right", voter="bob", context=contexts[2], **empty))
    same = {"dialogue": "d3", "prompt": "We won 3!", "chosen": "I am afraid.", "rejected": "Oh no."}
    records.write_jsonl(tmp_path / "own.jsonl", [same, same | {"prompt": "We lost!"}])
    sources = (
        f"votes@{records.digest(tmp_path / 'votes')}",
        f"{tmp_path / 'own.jsonl'}@{records.sha256(tmp_path / 'own.jsonl')}",
    )
    train, held_out = pairs_of(tmp_path, [], changed(LEARNED, pairs=sources), str(tmp_path / "votes"))
    pairs = [*train, *chain(*held_out)]
    # Of the second ann and bob do not agree.
    assert sorted(pair.history[-1].content for pair in pairs if pair.source == "votes") == sorted(
        f"We won {n}!" for n in range(30) if n != 1
    )
    assert [pair.history[-1].content for pair in pairs if pair.source != "votes"] == ["We lost!"]
    assert {(pair.chosen, pair.rejected) for pair in pairs} == {("I am afraid.", "Oh no.")}
    typed = next(pair for pair in pairs if pair.history[-1].content == "We won 0!")
    assert typed.dialogue.startswith("typed/")
    assert {pair.dialogue for pair in pairs} > {f"d{n}" for n in range(2, 30)}
    for wrong in ("votes", f"votes@{'0' * 64}"):
        with pytest.raises(InputError, match=rf"reward_model\.pairs: votes@sha256 must pin .* sha256 {sources[0][6:]}"):
            pairs_of(tmp_path, [], changed(LEARNED, pairs=wrong), str(tmp_path / "votes"))


@pytest.mark.parametrize("pairs", ["voted", [], ["contrast", "mine"]])
def test_pairs_that_are_nowhere_are_refused(pairs: Any) -> None:
    with pytest.raises(ValidationError, match=r"contrast, generated@commit, votes@sha256, file\.jsonl@sha"):
        Learned.model_validate_json(LEARNED.model_copy(update={"pairs": pairs}).model_dump_json(warnings=False))
