"""Laws of the judges that are transformers' sequence classifiers: each text alone, pinned, every label mapped."""

import json
import shutil
from pathlib import Path

import pytest
from test_emotion import LABELS, NEW, TEXTS

from emotune.core.errors import InputError
from emotune.judges import files
from emotune.judges.emotion import train_emotion
from emotune.judges.hub import load_hub
from emotune.judges.params import JudgeChoice
from emotune.judges.verdicts import Judge
from emotune.models import pins


@pytest.fixture(scope="module", params=["bert", "llama"])
def classifier(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier of GLAD, SAD and UPSET, with a tokenizer of whole words; the Llama has no pad token."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
    )

    words = ["[UNK]", "[END]", "[PAD]", *sorted({word for text in TEXTS for word in text.strip(".").split()}), "."]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    shape = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 12,
        "initializer_range": 1.0,
        "id2label": {0: "GLAD", 1: "SAD", 2: "UPSET"},
        "label2id": {"GLAD": 0, "SAD": 1, "UPSET": 2},
    }
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "bert":
        BertForSequenceClassification(BertConfig(**shape)).save_pretrained(folder)
        special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    else:
        LlamaForSequenceClassification(LlamaConfig(**shape)).save_pretrained(folder)
        special = {"unk_token": "[UNK]", "eos_token": "[END]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def judge_of(folder: Path, label_map: dict[str, str] | None, batch_size: int = 4) -> Judge:
    return load_hub(str(folder), pins.folder_revision(folder), label_map, batch_size)


def test_a_sequence_classifier_judges_each_text_alone_and_in_input_order(classifier: Path) -> None:
    texts = [*TEXTS, " ".join(TEXTS)]
    alone = [judge_of(classifier, None)([text])[0] for text in texts]
    together = judge_of(classifier, None, batch_size=5)(texts)
    assert [label for label, _ in together] == [label for label, _ in alone]
    assert len({label for label, _ in together}) > 1
    assert [confidence for _, confidence in together] == pytest.approx(
        [confidence for _, confidence in alone], abs=1e-5
    )
    assert all(0 < confidence <= 1 for _, confidence in together)
    assert judge_of(classifier, None)([]) == []


def test_labels_that_become_one_are_added_up(classifier: Path) -> None:
    verdicts = judge_of(classifier, {"GLAD": "any", "SAD": "any", "UPSET": "any"})(TEXTS[:3])
    assert [label for label, _ in verdicts] == ["any"] * 3
    assert [confidence for _, confidence in verdicts] == pytest.approx([1.0] * 3)


def test_a_multi_label_classifier_is_read_by_sigmoid_as_one_distribution(classifier: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = Path(shutil.copytree(classifier, tmp_path / "multi"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        logits = model(**AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")).logits[0].double()
    shares = logits.sigmoid() / logits.sigmoid().sum()
    assert not shares.allclose(logits.softmax(-1), atol=0.01)
    [(label, confidence)] = judge_of(folder, None)(TEXTS[:1])
    assert (label, confidence) == (model.config.id2label[int(shares.argmax())], pytest.approx(float(shares.max())))


def test_a_label_map_must_name_all_labels_of_the_model_and_no_other(classifier: Path) -> None:
    with pytest.raises(InputError, match="label 'UPSET' of the model is not mapped; mapped are GLAD, SAD"):
        judge_of(classifier, {"GLAD": "happiness", "SAD": "sadness"})
    with pytest.raises(InputError, match="labels maps 'MAD'; the model's labels are GLAD, SAD, UPSET"):
        judge_of(classifier, {"GLAD": "happiness", "SAD": "sadness", "UPSET": "anger", "MAD": "anger"})


def test_a_classifier_that_is_not_pinned_is_refused(classifier: Path) -> None:
    with pytest.raises(InputError, match=r"revision must be the hash of its content, [0-9a-f]{64}; got None"):
        load_hub(str(classifier), None, None, 4)
    with pytest.raises(InputError, match=r"owner/model: no such folder.*40-digit commit, not a branch.*got main"):
        load_hub("owner/model", "main", None, 4)


def test_open_judge_takes_the_trained_file_or_the_named_model(classifier: Path, tmp_path: Path) -> None:
    files.save(train_emotion(TEXTS, LABELS, "words", 0), tmp_path / "words.skops")
    embedded = files.open_judge(tmp_path / "words.skops", JudgeChoice(name="embedded", revision=None, labels=None))
    assert embedded(NEW[:1])[0][0] == "happiness"
    choice = JudgeChoice(name=str(classifier), revision=pins.folder_revision(classifier), labels=None)
    assert files.open_judge(tmp_path / "absent.skops", choice)(NEW[:1])[0][0] in ("GLAD", "SAD", "UPSET")
