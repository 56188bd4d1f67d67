"""Laws of control.py: several processes answer in the same batches, or not at all."""

import multiprocessing
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from emotune.core import processes
from emotune.core.dialogue import Dialogue
from emotune.evaluation.answers import Question, control
from emotune.evaluation.control import control_by
from emotune.generation.params import Sampling
from emotune.models import loading
from emotune.prompts.prompter import Prompter

SAMPLING = Sampling(
    temperature=1.0, top_k=50, top_p=1.0, repetition_penalty=1.0, min_new_tokens=1, max_new_tokens=3, guidance=1.0
)


def neutral(texts: Sequence[str]) -> list[tuple[str, float]]:
    return [("neutral", 1.0)] * len(texts)


class Rank:
    """One of two processes that ask a model for control; the second has `free` bytes, or runs out at `most` rows."""

    def __init__(self, prompter: Prompter, model: Any, questions: Sequence[Question], free: int, most: int) -> None:
        self.prompter, self.model, self.questions, self.free, self.most = prompter, model, questions, free, most

    def run(self, rank: int, port: int, heard: Any) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        processes.distributed().init_process_group("gloo")
        free = self.free if rank else 1 << 40
        psutil.virtual_memory = lambda: SimpleNamespace(available=free)
        sizes: list[int] = []

        def look(_: Any, __: Any, given: dict[str, Any]) -> None:
            sizes.append(len(given["input_ids"]))
            if rank and sizes[-1] > self.most:
                raise torch.OutOfMemoryError("no memory")

        self.model.register_forward_pre_hook(look, with_kwargs=True)
        try:
            control_by({"judge": neutral}, self.model, self.prompter, self.questions, SAMPLING, 7)
        except torch.OutOfMemoryError:
            sizes.append(-1)
        heard.put((rank, sizes))


@pytest.fixture
def asked(base: Path, tokenizer: Any, dialogues: list[Dialogue], model_choice: Any) -> tuple[Any, ...]:
    questions = control(dialogues, 3, 3, ("sadness", "neutral"), 7)
    assert len(questions) == 6
    return Prompter(tokenizer, None, 128), loading.load_base(base, model_choice), questions


def batches_of_two(rank: Rank) -> list[list[int]]:
    """The rows of each batch that went through the model of each process; -1 where it failed of memory."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    heard: Any = fork.Queue()
    two = [fork.Process(target=rank.run, args=(number, port, heard), daemon=True) for number in range(2)]
    for process in two:
        process.start()
    sizes = dict(heard.get(timeout=60) for _ in two)
    for process in two:
        process.join()
    return [sizes[0], sizes[1]]


def test_processes_take_the_batches_that_the_least_of_them_has_memory_for(asked: Any) -> None:
    first, second = batches_of_two(Rank(*asked, free=0, most=1000))
    assert first == second
    assert max(first) == 1


def test_a_process_that_runs_out_of_memory_fails_and_halves_nothing_alone(asked: Any) -> None:
    first, second = batches_of_two(Rank(*asked, free=1 << 40, most=1))
    # What all prompts begin with goes first, once.
    assert second == [1, 6, -1]
    assert -1 not in first
