"""What several test modules share: a tiny tokenizer and model of our own, and the inputs beside the project."""

import os
from pathlib import Path
from typing import Any

import pytest

# Before any test imports torch: few threads on a shared machine, and nothing that could reach the network.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]
LABELS = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")


@pytest.fixture(autouse=True)
def tracking_is_off(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes an MLflow store, except those of the tracker itself."""
    if request.module.__name__ != "test_tracking":
        monkeypatch.setenv("EMOTUNE_TRACKING", "off")


@pytest.fixture
def shared() -> Path:
    """The folder of real inputs beside the project; a test that needs it is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs real inputs in {folder}")
    return folder


@pytest.fixture(scope="session")
def dialogues() -> list[Any]:
    """A few invented dialogues, enough to make a tokenizer of."""
    from emotune.dialogue import Dialogue, alternate

    texts = [
        ("I lost my keys again.", "Where did you see them last?", "On the kitchen table.", "Then let us look there!"),
        ("We won the match!", "That is great news!", "Will you come to the party?", "Of course I will."),
        ("Why did you shout at me?", "I am so sorry about that.", "You should be.", "It was wrong of me."),
        ("There is a spider on the wall.", "Where? I cannot look!", "Behind you.", "Please take it outside."),
        ("Could you open the window?", "Yes, it is warm in here.", "Thank you very much.", "You are welcome."),
    ]
    emotions = ("sadness", "neutral", "happiness", "surprise")
    return [Dialogue(f"invented/{number}", alternate(talk, emotions)) for number, talk in enumerate(texts)]


@pytest.fixture(scope="session")
def base(dialogues: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model as the base_model stage leaves it: an embedded tokenizer, a random Llama and base.json."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from emotune import models, pretraining, records

    folder = tmp_path_factory.mktemp("base")
    tokenizer = pretraining.tokenizer(dialogues, LABELS, vocabulary=400)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    records.write_json(folder / models.BASE_FILE, {"name": models.EMBEDDED})
    return folder


@pytest.fixture
def tokenizer(base: Path) -> Any:
    """The tiny embedded tokenizer, speaking the default template; a new one for each test."""
    from emotune import models

    return models.load_tokenizer(base, "out_inst_uni")
