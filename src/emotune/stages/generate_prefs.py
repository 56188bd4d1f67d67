"""generate_prefs: the sft model answers, its judges choose: the preference data that dpo learns from."""

from __future__ import annotations

from pathlib import Path

from emotune import launch, params, records, tracking
from emotune.errors import InputError


def main(dialogues: Path, base: Path, sft: Path, judges: Path, out: Path, metrics: Path) -> None:
    """Sample candidates for train prompts, reward them, and write the best and the worst of each as a pair."""
    p = params.load("history_turns", "system_prompt", "model", "gibberish_judge", "prefs", "reward")
    from emotune import models, preferences
    from emotune.judges import open_judge

    inputs = records.digests(dialogues=dialogues, base=base, sft=sft, judges=judges)
    with tracking.run("generate_prefs", p.model_dump(), inputs) as run:
        labels = records.read_json(dialogues / "labels.json")["labels"]
        tokenizer = models.load_tokenizer(sft, None)
        model = models.load_adapter(models.load_base(base, p.model), sft)
        rewarding = open_judge(judges / "reward.skops", p.reward.emotion_judge)
        gibberish = open_judge(judges / "gibberish.skops", p.gibberish_judge)

        asked = preferences.choose_prompts(
            records.read_dialogues(dialogues / "train.jsonl"),
            tokenizer,
            labels,
            p.prefs,
            p.history_turns,
            p.system_prompt,
            p.model.context,
        )
        outcomes = preferences.generate(model, tokenizer, asked, p.prefs, p.reward, rewarding, gibberish)
        pairs = preferences.rows(tokenizer, asked, outcomes, p.system_prompt)
        if not pairs:
            raise InputError(
                f"no prompt of {len(asked)} made a pair in {p.prefs.attempts} attempts: lower prefs.min_chosen_score "
                "or prefs.target_score_range, or train sft for longer"
            )
        measured = preferences.measure(asked, outcomes, pairs, labels)
        held_out = min(round(p.prefs.validation * len(pairs)), len(pairs) - 1)
        records.write_jsonl(out / "validation.jsonl", pairs[:held_out])
        records.write_jsonl(out / "train.jsonl", pairs[held_out:])
        records.write_json(metrics, measured)
        run.metrics(measured)


if __name__ == "__main__":
    launch.stage(main)
