"""On a CPU, score the labelled positions alone, and no more of them at once than memory has room for."""

import functools
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from trl.trainer.utils import FusedCausalLMOutput

# Causal models whose logits are the head's product with the last hidden state, and nothing more.
PLAIN_HEADS = ("llama", "mistral", "gemma", "gemma3_text", "qwen2", "qwen3")
# At most so many scores are held at once, 128 MiB in float32: 131 positions of a vocabulary of 256,000. Where all
# fit, as with any vocabulary of a few thousand, backward needs no second look at them.
SCORES = 2**25


def score_labelled(model: Any) -> None:
    """On a CPU, let the head of a TRL trainer's model score the labelled positions alone; the loss is the same.

    TRL's own does that on a GPU, in chunks of the vocabulary (`nll`, which is `chunked_nll` now), and elsewhere scores
    every position twice, forward and backward: with the vocabulary of a small model that is half of a step, where few
    tokens are trained on. Ours goes in chunks of positions. Either serves sft and dpo; Liger's could not do both.
    """
    base = model.get_base_model()
    if not hasattr(head := base.get_output_embeddings(), "bias"):
        # TRL reads it, and PEFT's trained tokens in a head that is tied to the embeddings have none.
        head.bias = None
    softcap = getattr(base.config, "final_logit_softcapping", None)
    if base.device.type != "cpu" or base.config.model_type not in PLAIN_HEADS or softcap is not None:
        return
    of_trl = base.forward

    # The signature stays: generate() looks at it.
    @functools.wraps(of_trl)
    def forward(*args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return of_trl(*args, labels=labels, **kwargs) if labels is not None else of_trl(*args, **kwargs)
        hidden = base.base_model(*args, **kwargs | {"use_cache": False}).last_hidden_state[:, :-1]
        mask = labels[:, 1:] != -100
        targets = labels[:, 1:][mask]
        most = max(1, SCORES // base.config.vocab_size)
        picked, entropy, mean, best = _scores(base.get_output_embeddings(), hidden[mask], targets, most)

        def placed(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        return FusedCausalLMOutput(
            loss=-picked.sum() / mask.sum().clamp(min=1),
            log_probs=placed(picked),
            entropy=placed(entropy),
            mean_logits=placed(mean),
            is_top1=placed(best),
            label_mask=mask,
        )

    base.forward = forward


def _scores(head: Any, hidden: torch.Tensor, targets: torch.Tensor, most: int) -> tuple[torch.Tensor, ...]:
    """Of each position its target's log-probability, and without gradient entropy, mean logit and whether it is best.

    Where positions are more than `most`, they go in chunks, and backward makes the scores of a chunk again.
    """
    if len(targets) <= most:
        return _score(head, hidden, targets)
    chunks = zip(hidden.split(most), targets.split(most), strict=True)
    parts = [checkpoint(_score, head, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def _score(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    logits = head(hidden).float()
    shares = logits.log_softmax(-1)
    picked = shares.gather(-1, targets[:, None])[:, 0]
    with torch.no_grad():
        entropy = -(shares.exp() * shares).sum(-1)
        best = picked >= shares.max(-1).values
    return picked, entropy, logits.detach().mean(-1), best
