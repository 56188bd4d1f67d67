"""On a CPU, score the labelled positions alone."""

import functools
from typing import Any

import torch
from trl.trainer.utils import FusedCausalLMOutput

# Causal models whose logits are the head's product with the last hidden state, and nothing more.
PLAIN_HEADS = ("llama", "mistral", "gemma", "qwen2", "qwen3")


def score_labelled(model: Any) -> None:
    """On a CPU, let the head of a TRL trainer's model score the labelled positions alone; the loss is the same.

    TRL's own does that on a GPU, and elsewhere scores every position twice, forward and backward: with the vocabulary
    of a small model that is half of a step, where few tokens are trained on. It can then score by tied embeddings too.
    """
    base = model.get_base_model()
    if not hasattr(head := base.get_output_embeddings(), "bias"):
        # TRL reads it, and PEFT's trained tokens in a head that is tied to the embeddings have none.
        head.bias = None
    if base.device.type != "cpu" or base.config.model_type not in PLAIN_HEADS:
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
        logits = base.get_output_embeddings()(hidden[mask]).float()
        shares = logits.log_softmax(-1)
        picked = shares.gather(-1, targets[:, None])[:, 0]
        with torch.no_grad():
            entropy = -(shares.exp() * shares).sum(-1)
            best = picked >= shares.max(-1).values

        def placed(values: torch.Tensor) -> torch.Tensor:
            return values.new_zeros(mask.shape).masked_scatter(mask, values)

        return FusedCausalLMOutput(
            loss=-picked.sum() / mask.sum().clamp(min=1),
            log_probs=placed(picked),
            entropy=placed(entropy),
            mean_logits=placed(logits.detach().mean(-1)),
            is_top1=placed(best),
            label_mask=mask,
        )

    base.forward = forward
