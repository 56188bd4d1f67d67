"""generate_prefs: the sft model answers, its judges choose: the preference data that dpo learns from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from emotune import launch, params, records, tracking
from emotune.errors import InputError

if TYPE_CHECKING:
    from emotune.judges import Judge


def main(dialogues: Path, base: Path, sft: Path, judges: Path, out: Path, metrics: Path) -> None:
    """Sample candidates for train prompts, reward them, and write the best and the worst of each as a pair."""
    p = params.load("history_turns", "system_prompt", "model", "gibberish_judge", "generation", "prefs", "reward")
    from emotune import journal, models, preferences

    def open_model() -> object:
        return models.load_tuned(base, p.model, sft)

    def open_judges() -> tuple[Judge, Judge]:
        from emotune.judges import open_judge

        return (
            open_judge(judges / "reward.skops", p.reward.emotion_judge),
            open_judge(judges / "gibberish.skops", p.gibberish_judge),
        )

    inputs = records.digests(dialogues=dialogues, base=base, sft=sft, judges=judges)
    with tracking.run("generate_prefs", p.model_dump(), inputs) as run:
        labels = records.read_json(dialogues / "labels.json")["labels"]
        tokenizer = models.load_tokenizer(sft, None)
        train = records.read_dialogues(dialogues / "train.jsonl")
        asked = preferences.choose_prompts(
            train, tokenizer, labels, p.prefs, p.history_turns, p.system_prompt, p.model.context
        )
        here = p.generation.engine == "local"
        sample = (
            preferences.local(open_model, tokenizer, p.prefs)
            if here
            else preferences.remote(str(p.generation.model), p.prefs)
        )
        judge = preferences.judging(open_judges)
        # Judges run on this machine's cores: a GPU or a server can sample the next batch meanwhile.
        ahead = 0 if here and models.device().type == "cpu" else 1
        with journal.opened(launch.work("journal.sqlite"), preferences.made_of(inputs, p)) as memo:
            mine = preferences.generate(launch.share(asked), p.prefs, p.reward, sample, judge, memo, ahead)
        outcomes = launch.gather(mine)
        if not launch.first():
            return

        pairs = preferences.rows(asked, outcomes)
        test = records.read_dialogues(dialogues / "test.jsonl")
        measured = preferences.measure(asked, outcomes, pairs, labels, test, p.history_turns)
        run.metrics(measured)
        records.write_json(metrics, measured)
        if broken := preferences.audit(measured, p.prefs.audit):
            raise InputError("\n".join(broken))
        held_out = min(round(p.prefs.validation * len(pairs)), len(pairs) - 1)
        records.write_jsonl(out / "validation.jsonl", pairs[:held_out])
        records.write_jsonl(out / "train.jsonl", pairs[held_out:])


if __name__ == "__main__":
    launch.stage(main, parallel=True)
