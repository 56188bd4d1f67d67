"""What tests of sft, dpo and their harness share: sections for the tiny base model, its adapter, and invented pairs.

And two processes that run a stage.
"""

import multiprocessing
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from conftest import STAGES, run_stage
from emotune.core import processes
from emotune.core.dialogue import Dialogue
from emotune.models import loading
from emotune.models.params import Model
from emotune.prompts.prompter import Prompter
from emotune.runs import launchers
from emotune.stages.dpo import Dpo
from emotune.stages.sft import Lora, Sft, sft_rows
from emotune.training.params import Training

CHOICE = Model(base="embedded", revision=None, dtype="float32", attention="sdpa", quantization="none", context=256)
SFT = Sft(
    epochs=1.0,
    learning_rate=0.01,
    schedule="cosine",
    warmup=0.1,
    batch_size=2,
    accumulation=1,
    optimizer="adamw_torch",
    gradient_checkpointing=False,
    checkpoints=2,
    seed=7,
    loss_on="replies",
    neutral_replies=None,
    balance=0.0,
    repeats=None,
    swapped=False,
    tag_dropout=0.0,
    lora=Lora(rank=2, alpha=4, dropout=0.0, rslora=True, tags=True, target_modules="all-linear"),
)
DPO = Dpo(
    **{name: getattr(SFT, name) for name in Training.model_fields},
    loss="sigmoid",
    beta=0.1,
    sft_weight=0.0,
    control_contexts=0,
)


def changed(p: Any, **changes: Any) -> Any:
    return type(p).model_validate(p.model_dump() | changes)


def ignore(logs: Mapping[str, float], step: int) -> None:
    pass


def rows_of(tokenizer: Any, dialogues: list[Dialogue], p: Sft, context: int = 256) -> list[dict[str, Any]]:
    """What sft trains on."""
    return sft_rows(Prompter(tokenizer, None, context), dialogues, "neutral", p)[0]


def save_adapter(base: Path, tokenizer: Any, folder: Path) -> Path:
    """An adapter that changes what the tiny model says, with dropout, saved in a folder."""
    torch.manual_seed(7)
    loading.save_adapter(
        with_tags(base, tokenizer, r=2, lora_dropout=0.1, init_lora_weights=False), tokenizer, base, folder
    )
    return folder


def tied(base: Path, folder: Path) -> Path:
    """The tiny base model with one matrix for input and output embeddings, saved in a folder."""
    shutil.copytree(base, folder)
    config = LlamaConfig.from_pretrained(base)
    config.tie_word_embeddings = True
    torch.manual_seed(7)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def with_tags(base: Path, tokenizer: Any, **lora: Any) -> Any:
    """The tiny model under a LoRA adapter to which embeddings of the tags of three emotions belong, moved already."""
    tags = Prompter(tokenizer, None, CHOICE.context).tag_ids(("neutral", "sadness", "surprise"))
    config = LoraConfig(target_modules="all-linear", trainable_token_indices=tags, task_type="CAUSAL_LM", **lora)
    model = get_peft_model(loading.load_base(base, CHOICE), config)
    delta = model.get_input_embeddings().token_adapter.trainable_tokens_delta["default"]
    delta.data += 0.1 * torch.randn(delta.shape)
    return model


def pair(number: int) -> dict[str, Any]:
    return {
        "history": [{"role": "user", "content": "I lost my keys again.", "emotion": "sadness"}],
        "emotion": "sadness",
        "prompt": "[INST] I lost my keys again. [/INST]",
        "chosen": f"Where did you see them {number} last?",
        "rejected": f"Great {number}!",
    }


class Two:
    """Two processes that run a stage, forked from this one, which has imported all that takes seconds to import."""

    def __init__(
        self,
        stage: str,
        folder: Path,
        prepare: Callable[[], None] = lambda: None,
        stages: Mapping[str, Any] = STAGES,
    ) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self._outputs = [folder.with_name(f"{folder.name}.{stage}.{rank}") for rank in range(2)]
        fork = multiprocessing.get_context("fork")
        self.processes = [
            fork.Process(target=self._run, args=(rank, port, stage, folder, prepare, stages), daemon=True)
            for rank in range(2)
        ]
        for process in self.processes:
            process.start()

    def _run(
        self, rank: int, port: int, stage: str, folder: Path, prepare: Callable[[], None], stages: Mapping[str, Any]
    ) -> None:
        from accelerate.state import AcceleratorState

        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with self._outputs[rank].open("w") as out, redirect_stdout(out), redirect_stderr(out):
            torch.set_num_threads(1)
            # What the tests' own process trained alone.
            AcceleratorState._reset_state(reset_partial_state=True)
            prepare()
            launchers.join()
            run_stage(stage, folder, stages)
            processes.wait()
            processes.distributed().destroy_process_group()

    def outputs(self) -> list[str]:
        """What each printed on the way to a good end."""
        for process in self.processes:
            process.join()
        printed = [output.read_text() for output in self._outputs]
        assert [process.exitcode for process in self.processes] == [0, 0], printed
        return printed

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
