"""sft: LoRA on the base model, so that its replies follow the emotion in the prompt."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from emotune.core import processes, records
from emotune.core.contract import DataSets, Dep, Inputs, Log, Metrics, Out
from emotune.core.dialogue import ASSISTANT, Dialogue, Turn, normal_form, swapped
from emotune.core.errors import InputError
from emotune.core.sections import Count, Positive, Section
from emotune.core.seeds import key
from emotune.models.params import Model
from emotune.prompts.params import Template
from emotune.prompts.prompter import Prompter
from emotune.training import lora
from emotune.training.lora import UNLEARNED
from emotune.training.params import Adapter, Tuning

PARALLEL = True
# What a history row shows, under the trainer's own names.
CURVE = ["step", "loss", "eval_loss", "learning_rate", "grad_norm"]
# No reply is learned more often than so in an epoch.
MAX_REPEATS = 16
Dialogues = Sequence[Dialogue]
Share = Annotated[float, Field(ge=0, le=1)]


class Lora(Adapter):
    tags: bool


class Sft(Tuning):
    loss_on: Literal["replies", "all"]
    neutral_replies: Positive | None
    repeats: Count | None
    balance: Share
    swapped: bool
    tag_dropout: Share
    lora: Lora


class Params(Section):
    """The base model, and how it is tuned."""

    model: Model
    sft: Sft
    system_prompt: str | None
    template: Template


def data_sets(_: Params) -> DataSets:
    """What it trains on and watches."""
    return {"dialogues": ("train", "validation")}


def main(p: Params, log: Log, inputs: Inputs, dialogues: Dep, base: Dep, out: Out, history: Out) -> Metrics:
    """Train a LoRA adapter on whole dialogues; write adapter and tokenizer, and the loss curve."""
    from emotune.models import loading
    from emotune.training.workspace import workspace

    train, validation = (records.read_dialogues(dialogues / f"{split}.jsonl") for split in ("train", "validation"))
    neutral = records.read_json(dialogues / "labels.json")["neutral"]
    tokenizer = loading.load_tokenizer(base, p.template)
    model = loading.load_base(base, p.model)
    with workspace("sft", p.model_dump(mode="json"), inputs) as folder:
        tuned, curve, metrics = tune(model, tokenizer, train, validation, neutral, p, folder, log)
        if processes.first():
            loading.save_adapter(tuned, tokenizer, base, out)
            records.write_csv(history, CURVE, curve)
    return metrics


def tune(
    model: Any, tokenizer: Any, train: Dialogues, validation: Dialogues, neutral: str, p: Params, folder: Path, log: Log
) -> tuple[Any, list[dict[str, Any]], Metrics]:
    """The base model under a new LoRA adapter trained on whole dialogues; returns it, its curve and its metrics.

    The loss is the mean negative log-likelihood of every reply and its end token (`loss_on: replies`), or of every
    token (`all`). How often a reply is learned goes by its emotion (`passes`), and rows without any reply to train on
    are left out. A dialogue longer than the context is cut between turns.
    """
    prompter = Prompter(tokenizer, p.system_prompt, p.model.context)
    rows, learned, left_out = sft_rows(prompter, train, neutral, p.sft)
    as_they_are = {"neutral_replies": None, "repeats": None, "balance": 0.0, "swapped": False, "tag_dropout": 0.0}
    held_out, _, _ = sft_rows(prompter, validation, neutral, p.sft.model_copy(update=as_they_are))
    # Of the train split alone: what it has no reply of is asked of nobody.
    emotions = {turn.emotion for dialogue in train for turn in dialogue.turns}
    tags = prompter.tag_ids(emotions) if p.sft.lora.tags else None
    tuned, curve, metrics = lora.tune(model, tokenizer, rows, held_out, tags, p.sft, p.model, folder, log)
    return tuned, curve, metrics | {"replies_learned": dict(learned), "turns_left_out_too_long": left_out}


def passes(dialogues: Dialogues, neutral: str, p: Sft) -> dict[str, float]:
    """How often an epoch learns a reply of each emotion, in the mean.

    Of neutral ones `neutral_replies` are learned for each other: 83 % of DailyDialog is neutral, so a batch's loss says
    little about any other emotion. One with n replies left is learned (most / n) ** `balance` times, where the most
    frequent has `most`: as often as that one at 1, but for MAX_REPEATS.
    """
    counts, of_users = replies(dialogues), replies(map(swapped, dialogues if p.swapped else ()))
    shares = dict.fromkeys(counts | of_users, 1.0)
    if p.neutral_replies is not None and neutral in counts:
        shares[neutral] = min(1.0, p.neutral_replies * (counts.total() - counts[neutral]) / counts[neutral])
    left = {emotion: max(1.0, share * counts[emotion]) for emotion, share in shares.items()}
    most, scarce = max(left.values()), rare(dialogues, neutral)
    left = {emotion: n + of_users[emotion] * (emotion in scarce) for emotion, n in left.items()}
    return {
        emotion: share * min(MAX_REPEATS, max(1.0, most / left[emotion]) ** p.balance)
        for emotion, share in shares.items()
    }


def replies(dialogues: Iterable[Dialogue]) -> Counter[str]:
    """How many there are in each emotion."""
    return Counter(turn.emotion for dialogue in dialogues for turn in dialogue.turns if turn.role == ASSISTANT)


def rare(dialogues: Dialogues, neutral: str) -> set[str]:
    """The emotions of turns but neutral and whichever of the others most replies have."""
    others = [emotion for emotion, _ in replies(dialogues).most_common() if emotion != neutral]
    return {turn.emotion for dialogue in dialogues for turn in dialogue.turns} - {neutral, *others[:1]}


def sft_rows(
    prompter: Prompter, dialogues: Dialogues, neutral: str, p: Sft
) -> tuple[list[dict[str, list[int]]], Counter[str], int]:
    """Rows of ids and labels, how many replies of each emotion they teach, and how many turns fit in no row.

    With `swapped` each dialogue is read a second time with its roles exchanged, and of what its user said the replies
    in rare emotions are learned. A row is repeated for those of its replies that are learned again, and no other;
    without any it is left out. Replies of one text, but for case and punctuation, are learned at the first `repeats`
    places where any is. In a share `tag_dropout` of the rows all turns but the replies learned are shown as neutral:
    there the last tag alone says what to reply in. InputError where no dialogue fits in the context.
    """
    rows, taught, said, left_out = [], Counter[str](), Counter[str](), 0
    means, scarce = passes(dialogues, neutral, p), rare(dialogues, neutral)
    exchanged = [own for own in map(swapped, dialogues if p.swapped else ()) if scarce & replies([own]).keys()]
    for number, dialogue in enumerate([*dialogues, *exchanged]):
        wanted = means if number < len(dialogues) else scarce
        rng, dropout = (random.Random(key(p.seed, of, dialogue.id)) for of in ("neutral replies", "tag dropout"))
        pieces = prompter.pieces(dialogue.turns)
        left_out += len(dialogue.turns) - sum(map(len, pieces))
        for piece in pieces:
            asked = [turn.emotion for turn in piece if turn.role == ASSISTANT]
            texts = [normal_form(turn.content) for turn in piece if turn.role == ASSISTANT]
            times = [_whole(means[emotion], rng) if emotion in wanted else 0 for emotion in asked]
            for place, text in enumerate(texts):
                times[place] *= p.repeats is None or said[text] < p.repeats
                said[text] += times[place] > 0
            for repeat in range(max(times)):
                learned = [repeat < count for count in times]
                taught.update(emotion for emotion, is_learned in zip(asked, learned, strict=True) if is_learned)
                row = prompter.training_row(piece)
                if dropout.random() < p.tag_dropout:
                    bare = prompter.training_row(_without_tags(piece, learned, neutral))
                    # The neutral label may be longer than another.
                    row = bare if len(bare[0]) <= prompter.context else row
                rows.append(_row(*row, learned, p.loss_on == "all"))
    if not rows:
        raise InputError(f"model.context: no exchange of two turns fits in {prompter.context} tokens")
    return rows, taught, left_out


def _whole(mean: float, rng: random.Random) -> int:
    """One of the two whole numbers around the mean, so drawn that they have it."""
    return int(mean) + (mean > int(mean) and rng.random() < mean % 1)


def _without_tags(turns: Sequence[Turn], learned: Sequence[bool], neutral: str) -> list[Turn]:
    """The turns, of which all but the replies that are `learned` are neutral."""
    replies = iter(learned)
    tagged = [turn.role == ASSISTANT and next(replies) for turn in turns]
    return [
        turn if is_tagged else replace(turn, emotion=neutral) for turn, is_tagged in zip(turns, tagged, strict=True)
    ]


def _row(ids: list[int], of_reply: list[bool], learned: Sequence[bool], others: bool) -> dict[str, list[int]]:
    """Ids up to the last trained token, and labels: of the replies that are `learned`, and of all `others` or of none.

    No token behind the last trained one can change the loss: each sees only what stands before it.
    """
    replies, labels = iter(learned), []
    for is_reply, tokens in groupby(zip(ids, of_reply, strict=True), key=itemgetter(1)):
        is_learned = next(replies) if is_reply else others
        labels += [token if is_learned else UNLEARNED for token, _ in tokens]
    end = max(at for at, label in enumerate(labels) if label != UNLEARNED) + 1
    return {"input_ids": ids[:end], "labels": labels[:end]}
