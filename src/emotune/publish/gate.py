"""The gate: what speaks against publishing a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emotune.core import records
from emotune.preferences.pairs import audit
from emotune.runs import tables
from emotune.runs.params import Params

SIGNIFICANT = 0.05


def objections(p: Params, metrics: Path, dirty: bool, stale: Sequence[str]) -> list[str]:
    """What speaks against publishing, a line each, none where dpo is better and can be made again."""
    return [
        *_no_better(records.read_json(metrics / "evaluate.json")["paired"]["sft_to_dpo"]),
        *audit(records.read_json(metrics / "prefs.json"), p.prefs.audit),
        *(["the working tree has changes that are in no commit (`git status` names them)"] if dirty else []),
        *(f"dvc.lock is not current: {line}" for line in stale),
    ]


def _no_better(paired: Mapping[str, Any]) -> Iterator[str]:
    for name, (section, key) in tables.TESTED.items():
        test = paired[section][key]
        if test["difference"] <= 0 or test["p"] >= SIGNIFICANT:
            yield (
                f"dpo is not better than sft in {name}: {test['difference']:+.3f} [{test['low']:+.3f}, "
                f"{test['high']:+.3f}], p {test['p']:.3f}, wanted more than 0 with p below {SIGNIFICANT}"
            )
