"""Any sequence classifier of the Hub, or of a folder, as a judge."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emotune.core.errors import InputError
from emotune.judges.verdicts import Classifier
from emotune.models import pins


def load_hub(name: str, revision: str | None, label_map: Mapping[str, str] | None, batch_size: int = 32) -> Classifier:
    """A transformers sequence classifier as a judge: a Hub name at a commit, or a local folder at its content's hash.

    `label_map` turns all of the model's labels into ours; labels that become one are added up. None keeps them.
    InputError where the pin is missing or wrong, or a label is not mapped.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from emotune.models import loading

    where = _where(name, revision)
    tokenizer = loading.opened(AutoTokenizer, "judge", where)
    model = loading.opened(AutoModelForSequenceClassification, "judge", where, dtype=torch.float32)
    model = model.to(loading.device()).eval()
    own = [model.config.id2label[index] for index in range(model.config.num_labels)]
    ours, share = _mapped(own, label_map, name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512))
    if "roberta" in model.config.model_type:
        # It numbers its positions from behind the padding token.
        longest -= model.config.pad_token_id + 1

    @torch.inference_mode()
    def probabilities(texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        table = np.zeros((len(texts), len(ours)))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            batch.pop("token_type_ids", None)
            own = _probabilities(model(**batch.to(model.device)).logits.double(), model.config.problem_type)
            table[rows] = own.cpu().numpy() @ share
        return table

    return Classifier(ours, probabilities)


def _probabilities(logits: Any, problem_type: str | None) -> Any:
    """[texts, labels] -> one distribution over the labels of each text.

    A multi-label classifier (most of GoEmotions' are) says of each label by itself how likely it is: those, as shares.
    """
    if problem_type != "multi_label_classification":
        return logits.softmax(-1)
    return logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True)


def _where(name: str, revision: str | None) -> dict[str, Any]:
    """from_pretrained's arguments for a folder whose content is `revision`, or a Hub name at that commit."""
    folder = pins.located(name)
    if folder.is_dir():
        content = pins.folder_revision(folder)
        if revision != content:
            raise InputError(f"judge {name}: revision must be the hash of its content, {content}; got {revision}")
        return {"pretrained_model_name_or_path": str(folder)}
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise InputError(
            f"judge {name}: no such folder, and as a Hub name it needs its 40-digit commit, not a branch, as revision; "
            f"got {revision}"
        )
    return {"pretrained_model_name_or_path": name, "revision": revision}


def _mapped(own: Sequence[str], label_map: Mapping[str, str] | None, name: str) -> tuple[list[str], np.ndarray]:
    """Our labels in order of first use, and [own, ours]: 1 where a model's label counts for ours."""
    mapping = {label: label for label in own} if label_map is None else label_map
    if left_out := [label for label in own if label not in mapping]:
        mapped = ", ".join(mapping)
        raise InputError(f"judge {name}: label {left_out[0]!r} of the model is not mapped; mapped are {mapped}")
    if unknown := [label for label in mapping if label not in own]:
        raise InputError(f"judge {name}: labels maps {unknown[0]!r}; the model's labels are {', '.join(own)}")
    ours = list(dict.fromkeys(mapping[label] for label in own))
    return ours, np.array([[mapping[label] == our for our in ours] for label in own], dtype=np.float64)
