"""A small Llama from nothing: its tokenizer, and all it learns, which is to go on with a dialogue or a text."""

import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from emotune.core import seeds
from emotune.core.contract import Log, Metrics
from emotune.core.dialogue import Dialogue
from emotune.models.params import Learning
from emotune.prompts.prompter import Prompter, template_text

TAGS = ("[INST]", "[/INST]", "[EMOTION]", "[/EMOTION]", "[U_EMOTION]", "[/U_EMOTION]", "[C_EMOTION]", "[/C_EMOTION]")
POINTS = 20
# What GPT-2 takes for a word (Radford et al. 2019): no merge crosses its end.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def make_tokenizer(texts: Sequence[str], labels: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens, with a pad token that is none of the others.

    It reads the tags and the emotions' names beside the texts, and never splits a tag, so that one costs a token.
    They remain plain text: merges, not special tokens; and the model never sees those of emotion.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    marks = [f"{tag} {label} {tag}" for tag in TAGS for label in labels]
    bpe = Tokenizer(models.BPE())
    pieces = Regex(f" ?(?:{'|'.join(map(re.escape, TAGS))})|{WORDS}")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*texts] + marks * (1 + len(texts) // len(marks)), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = template_text("native")
    return tokenizer


def contents(dialogues: Iterable[Dialogue]) -> list[str]:
    """What is said in dialogues, turn by turn."""
    return [turn.content for dialogue in dialogues for turn in dialogue.turns]


def dialogue_rows(prompter: Prompter, dialogues: Iterable[Dialogue]) -> list[list[int]]:
    """Dialogues as rows of ids in the template that the tokenizer carries, cut between turns where one is too long."""
    return [prompter.training_row(piece)[0] for dialogue in dialogues for piece in prompter.pieces(dialogue.turns)]


def text_rows(tokenizer: Any, texts: Iterable[str], context: int) -> list[list[int]]:
    """Texts as rows of ids between the start and the end token; one that is longer than the context fills several."""
    rows = []
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        # A last token alone would have nothing to be told from.
        rows += [ids[start : start + context] for start in range(0, len(ids) - 1, context)]
    return rows


def pretrain(
    tokenizer: Any, rows: Sequence[list[int]], held_out: Sequence[list[int]], p: Learning, context: int, log: Log
) -> tuple[Any, Metrics]:
    """A Llama that has learned to predict every token of the rows; returns it and its metrics."""
    import torch
    from transformers import set_seed

    set_seed(p.seed)
    model = _untrained(tokenizer, p, context)
    in_order = seeds.order([len(row) for row in rows], p.epochs, p.batch_size, p.seed)
    _train(model, _batches([rows[i] for i in in_order], p.batch_size), _optimizers(model, p), log)
    with torch.inference_mode():
        losses = [_loss(model, batch).item() for batch in _batches(held_out, p.batch_size)]
    return model, {
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "train_tokens": sum(map(len, rows)),
        "validation_loss": sum(losses) / len(losses),
    }


def _untrained(tokenizer: Any, p: Learning, context: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=p.hidden_size,
            intermediate_size=8 * p.hidden_size // 3,
            num_hidden_layers=p.layers,
            num_attention_heads=p.heads,
            num_key_value_heads=p.heads,
            max_position_embeddings=context,
            # Untied, so that tokens the dialogues lack (the tags) keep input embeddings that differ from one another.
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _batches(rows: Sequence[list[int]], size: int) -> list[Sequence[list[int]]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _optimizers(model: Any, p: Learning) -> list[Any]:
    """AdamW, and with `muon` Muon for the matrices of the layers, whose steps it makes orthogonal (Jordan et al. 2024).

    What is embedded and what is told from it, whose rows are tokens, stays AdamW's.
    """
    from torch.optim import AdamW, Muon

    inner = [q for name, q in model.named_parameters() if p.muon and q.ndim == 2 and name.startswith("model.layers")]
    others = [q for q in model.parameters() if not any(q is matrix for matrix in inner)]
    adam = AdamW(others, lr=p.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    return [adam, Muon(inner, lr=p.muon, weight_decay=0.01)] if p.muon else [adam]


def _train(model: Any, batches: Sequence[Sequence[list[int]]], optimizers: Sequence[Any], log: Log) -> None:
    """One step a batch: a twentieth of the steps warms up, a cosine leads down to 0."""
    import torch
    from transformers import get_cosine_schedule_with_warmup

    schedules = [
        get_cosine_schedule_with_warmup(optimizer, len(batches) // 20, len(batches)) for optimizer in optimizers
    ]
    began, every = time.monotonic(), max(1, len(batches) // POINTS)
    model.train()
    for step, batch in enumerate(batches, start=1):
        loss = _loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % every == 0:
            log({"loss": loss.item()}, step)
            left = (time.monotonic() - began) / step * (len(batches) - step)
            print(f"base_model: step {step} of {len(batches)}, loss {loss.item():.3f}, {left:.0f} s left", flush=True)
    model.eval()


def _loss(model: Any, rows: Sequence[list[int]]) -> Any:
    """The mean negative log-likelihood of every token of the rows but each first, in nats."""
    from emotune.models.likelihood import padded

    ids = padded(rows, model.config.pad_token_id)
    mask = padded([[1] * len(row) for row in rows], 0)
    return model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
