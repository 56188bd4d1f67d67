"""Seconds for replies to few-shot prompts, what they begin with read for each prompt over read once for all of them.

Each of seven emotions has `--shots` x `--shot` tokens of other dialogues in front of all its prompts. Behind them
stands a turn to answer, and one reply is wanted, sampled by the embedded base model as params.yaml says of evaluate.
Rounds alternate; `ratio` is the median of theirs, `ratio_reading` that of replies of a single token: of all but their
writing. Both ways must give the same replies. Prints one JSON object last.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import scratch

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100, help="of each emotion (default %(default)s)")
    parser.add_argument("--shots", type=int, default=4, help="(default %(default)s)")
    parser.add_argument("--shot", type=int, default=40, help="tokens of an example (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each (default %(default)s)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch (default: all)")
    chosen = parser.parse_args()
    scratch.report(measure, chosen)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    from emotune.models import loading, pins
    from emotune.prompts.prompter import Prompter
    from emotune.runs.params import parse

    whole = parse(ROOT / "params.yaml")
    tokenizer = loading.load_tokenizer(pins.WEIGHTS, whole.template)
    model = loading.load_base(pins.WEIGHTS, whole.model)
    asked = requests(chosen, Prompter(tokenizer, None, whole.model.context))
    replies = timed(model, tokenizer, asked, whole.evaluate.sampling, chosen.rounds)
    first_tokens = whole.evaluate.sampling.model_copy(update={"max_new_tokens": 1})
    reading = timed(model, tokenizer, asked, first_tokens, chosen.rounds)
    return {
        "benchmark": "few_shot",
        "model": f"embedded, {model.num_parameters() / 1e6:.1f} M",
        "ratio": ratio(replies),
        "ratio_reading": ratio(reading),
        "prompts": len(asked),
        "tokens_of_a_prompt": round(statistics.mean(len(request.prompt) for request in asked), 1),
        "shots": chosen.shots,
        "tokens_of_a_shot": chosen.shot,
        "threads": chosen.threads,
        "rounds": chosen.rounds,
        "seconds": {way: round(statistics.median(own), 3) for way, own in replies.items()},
        "seconds_reading": {way: round(statistics.median(own), 3) for way, own in reading.items()},
    }


def requests(chosen: argparse.Namespace, prompter: Any) -> list[Any]:
    """Prompts for replies of embedded dialogues in every emotion, behind other dialogues: the same for each emotion."""
    from emotune.core import seeds
    from emotune.core.dialogue import ASSISTANT, DAILY_DIALOG_LABELS
    from emotune.data import corpus
    from emotune.generation.engine import Request

    splits, length = corpus.dialogues(2000, 7), chosen.shots * chosen.shot
    read = [token for dialogue in splits["train"] for token in prompter.training_row(dialogue.turns)[0]]
    begin = {label: read[n * length :][:length] for n, label in enumerate(DAILY_DIALOG_LABELS)}
    asked = [
        (*begin[label], *prompter.ids(d.turns[:1], label))
        for d in splits["train"][-chosen.prompts :]
        for label in DAILY_DIALOG_LABELS
        if d.turns[1].role == ASSISTANT
    ]
    return [Request(prompt, (seeds.key(7, n),)) for n, prompt in enumerate(asked)]


def timed(model: Any, tokenizer: Any, asked: list[Any], sampling: Any, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round with each prompt read whole ("each") and with what they begin with read once ("once")."""
    from emotune.generation import local
    from emotune.models import prefixes

    # What must be spared for a beginning to be read once: never is so much.
    ways = {"each": 1.0, "once": prefixes.SPARED}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        replies = []
        for way, prefixes.SPARED in ways.items():
            began = time.perf_counter()
            replies.append(local.replies(model, tokenizer, asked, sampling))
            if number:  # the first warms up
                seconds[way].append(time.perf_counter() - began)
        assert replies[0] == replies[1]
    return seconds


def ratio(seconds: dict[str, list[float]]) -> float:
    return round(statistics.median(each / once for each, once in zip(seconds["each"], seconds["once"], strict=True)), 2)


if __name__ == "__main__":
    main()
