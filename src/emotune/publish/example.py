"""The worked example of a card: one message, asked for in every emotion, and what a model replies to it greedily."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from emotune.publish.facts import Facts
from emotune.runs.params import Params

MESSAGE = "I lost my keys again."
# Of a greedy reply, when two models are compared.
TOKENS = 16


class Reply(NamedTuple):
    """Token ids, and the logits that each was chosen from."""

    ids: list[int]
    logits: list[Any]


def messages(p: Params) -> list[dict[str, str]]:
    """What a user would hand to the chat template."""
    system = [{"role": "system", "content": p.system_prompt}] if p.system_prompt else []
    return [*system, {"role": "user", "content": MESSAGE, "emotion": p.data.neutral}]


def emotion(p: Params) -> str:
    """The one that the example asks for."""
    return next(label for label in p.data.labels if label != p.data.neutral)


def prompts(p: Params, tokenizer: Any) -> list[str]:
    """The worked example, and the same message with every other emotion asked for."""
    return [
        tokenizer.apply_chat_template(messages(p), tokenize=False, add_generation_prompt=True, emotion=label)
        for label in sorted(p.data.labels, key=lambda label: label != emotion(p))
    ]


def replies(base: Path, adapter: Path, facts: Facts) -> list[list[int]]:
    """The token ids with which an adapter on its base model answers each prompt."""
    from emotune.models import loading

    tokenizer, model = loading.load_tokenizer(adapter, None), loading.load_tuned(base, facts.p.model, adapter)
    return [greedy(model, tokenizer, prompt).ids for prompt in prompts(facts.p, tokenizer)]


def greedy(model: Any, tokenizer: Any, prompt: str) -> Reply:
    """The likeliest reply, at most 16 tokens of it."""
    import torch

    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"].to(model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return Reply(output.sequences[0, ids.shape[1] :].tolist(), [logits[0].float() for logits in output.logits])


def parting(reply: Reply, other: Reply) -> float:
    """By how many steps of bfloat16 the first logits differ where a reply goes on otherwise; 0 where none does."""
    for logits, own, its in zip(reply.logits, reply.ids, other.ids, strict=False):
        if own != its:
            # Eight significant bits: 2 ** -7 of the power of two below.
            first, second = logits[own].item(), logits[its].item()
            return (first - second) / 2 ** (math.frexp(first)[1] - 1 - 7)
    return 0.0
