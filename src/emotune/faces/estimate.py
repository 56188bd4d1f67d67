"""emotune estimate: of each stage memory by term, whether it fits, tokens, seconds, disk, and the knob that saves.

Nothing is downloaded: the shape of the base model and, where it is at hand, its tokenizer are enough.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from operator import mul
from pathlib import Path
from typing import Any, NamedTuple

from emotune.core import records
from emotune.core.dialogue import ASSISTANT, USER, Dialogue, Turn
from emotune.core.nested import overlaid
from emotune.core.sections import check, part
from emotune.models import pins
from emotune.prompts.prompter import Prompter, Row
from emotune.runs import costs, estimate, sizes
from emotune.runs.estimate import CHARACTERS, GB, Text
from emotune.runs.params import Params
from emotune.runs.stage import STAGES
from emotune.runs.tables import aligned
from emotune.stages import reward_model, sft

DIALOGUES, BASE = Path("data/dialogues"), Path("models/base")
# So many dialogues, evenly spaced, stand for all.
SAMPLE = 300
# What a template writes around a turn, in tokens, where no tokenizer is at hand.
AROUND = 10
# A dialogue of DailyDialog, in bytes of its source and in turns, and how many its train split has.
BYTES_OF_ONE, TURNS_OF_ONE, DAILY_DIALOG = 520, 8, 11118
# Seconds until a stage has its libraries and its model, and a byte of the train split in prepare and in judges.
START, PREPARING, JUDGING = 6.0, 1.5e-6, 4e-6
# As in training/trainer.py and evaluation/fit.py, which import torch.
VALIDATION_ROWS, PROBE_POINTS, WEIGHED = 200, 4, 100
# Calibration: a model of so few weights in its layers is run whole, a run reads at most so many tokens x weights, and
# so many rows are written at once.
SMALL, BUDGET, WIDTH = 2**25, 2**34, 64


class Counts(NamedTuple):
    """How much there is to do: dialogues and replies of train, rows and tokens of an epoch of sft, and their means."""

    dialogues: int
    rows: int
    tokens: int
    prompt: float
    reply: float
    questions: int
    said: str


class Speed(NamedTuple):
    """Seconds a token: trained with LoRA, read, and written."""

    trained: float
    read: float
    written: float


class Guess(Prompter):
    """A prompter without a tokenizer: so many tokens as English has on average."""

    def training_row(self, turns: Sequence[Turn]) -> Row:
        marks = [turn.role == ASSISTANT for turn in turns for _ in range(len(turn.content) // CHARACTERS + AROUND)]
        return [0] * len(marks), marks

    def ids(self, history: Sequence[Turn], emotion: str) -> list[int]:
        return [0] * (len(self.training_row(history)[0]) + AROUND)


def prompter_of(p: Params, root: Path) -> tuple[Prompter, str]:
    """The base model's own, where its tokenizer is at hand; else a guess, and what is to be said of it."""
    made = root / BASE / pins.BASE_FILE
    if p.model.base == pins.EMBEDDED:
        folder = pins.WEIGHTS
    elif made.is_file() and records.read_json(made)["name"] == p.model.base == pins.SCRATCH:
        folder = root / BASE
    else:
        folder = pins.located(p.model.base)
        if not folder.is_dir():
            cached = estimate.cached_file(p.model.base, "tokenizer.json", p.model.revision)
            folder = cached.parent if cached else folder
    if not (folder / "tokenizer.json").is_file():
        return Guess(None, p.system_prompt, p.model.context, p.history_turns), f"{CHARACTERS} characters a token"
    from emotune.models import loading  # with torch: seconds

    tokenizer = loading.load_tokenizer(folder, p.template)
    return Prompter(tokenizer, p.system_prompt, p.model.context, p.history_turns), "its tokenizer"


def dialogues_of(p: Params, root: Path) -> tuple[Sequence[Dialogue], int, int, str]:
    """Train dialogues or a sample of them, how many there are, their bytes, and where that is known from."""
    train = root / DIALOGUES / "train.jsonl"
    if train.is_file():
        own = records.read_dialogues(train)
        return own, len(own), train.stat().st_size, str(DIALOGUES)
    if p.data.source == "embedded":
        from emotune.data import corpus

        count = round(0.8 * p.data.dialogues)
        some = corpus.dialogues(min(2 * SAMPLE, p.data.dialogues), p.data.seed)["train"]
        return some, count, 670 * count, "the embedded grammar"
    size = 0
    if p.data.path:
        path = pins.located(p.data.path)
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
    count = size // BYTES_OF_ONE or DAILY_DIALOG
    turns = tuple(Turn((USER, ASSISTANT)[n % 2], 60 * "x", p.data.neutral) for n in range(TURNS_OF_ONE))
    return [Dialogue("guess", turns)], count, size, "the size of its source" if size else "the size of DailyDialog"


def text_of(p: Params, root: Path) -> tuple[Text, Counts]:
    """How long rows, prompts and replies are, and how many there are, by a sample of the dialogues."""
    prompter, how = prompter_of(p, root)
    dialogues, count, size, where = dialogues_of(p, root)
    some = dialogues[:: max(1, len(dialogues) // SAMPLE)]
    rows, _, _ = sft.sft_rows(prompter, some, p.data.neutral, p.sft)
    places = [(d, i) for d in some for i, turn in enumerate(d.turns) if turn.role == ASSISTANT]
    new, asked = p.prefs.sampling.max_new_tokens, places[:: max(1, len(places) // SAMPLE)]
    prompts = [len(prompter.fitting_prompt(prompter.history(d.turns, i), d.turns[i].emotion, new)[1]) for d, i in asked]
    lengths = [len(row["input_ids"]) for row in rows]
    learned = sum(label != sft.UNLEARNED for row in rows for label in row["labels"])
    replies = sum(of_reply and not before for row in rows for before, of_reply in pairwise(_learned(row)))
    scale = count / len(some)
    text = Text(max(lengths), max(prompts), round(learned / max(1, replies)), size)
    counts = Counts(
        dialogues=count,
        rows=round(scale * len(rows)),
        tokens=round(scale * sum(lengths)),
        prompt=sum(prompts) / len(prompts),
        reply=learned / max(1, replies),
        questions=round(scale * len(places) / 8),
        said=f"{where}, {how}",
    )
    return text, counts


def _learned(row: Mapping[str, list[int]]) -> list[bool]:
    return [label != sft.UNLEARNED for label in row["labels"]]


class Work(NamedTuple):
    """Tokens that go through the model: trained on, read and written; and what is done without it, in seconds."""

    trained: float = 0
    read: float = 0
    written: float = 0
    aside: float = START

    @property
    def tokens(self) -> int:
        return round(self.trained + self.read + self.written)


def works(p: Params, text: Text, c: Counts) -> dict[str, Work]:
    """What each stage has to do, where each prompt makes a pair at its first attempt."""
    natural = min(p.evaluate.prompts or c.questions, c.questions)
    questions = natural + p.evaluate.control_contexts * len(p.data.labels)
    row = c.prompt + c.reply
    asked = Work(read=questions * c.prompt + natural * row, written=questions * c.reply)
    twins = 1 if p.prefs.sampling.guidance == 1 else 2
    candidates = p.prefs.prompts * p.prefs.candidates * min(c.reply, p.prefs.sampling.max_new_tokens)
    pairs = 2 * p.prefs.prompts * (1 - p.prefs.validation) * p.dpo.epochs * row
    # Two rows a pair.
    learned = 2 * min(p.reward_model.contrast_pairs, 8 * c.questions) * p.reward_model.epochs * row
    probes = (PROBE_POINTS + 1) * p.dpo.control_contexts * len(p.data.labels)
    is_scratch = p.model.base == pins.SCRATCH
    return {
        "prepare": Work(aside=1 + text.size * PREPARING),
        "base_model": Work(trained=c.tokens * p.pretrain.epochs) if is_scratch else Work(aside=1.0),
        "judges": Work(aside=1 + text.size * JUDGING),
        "baseline": asked,
        "sft": Work(trained=c.tokens * p.sft.epochs, read=6 * VALIDATION_ROWS * c.tokens / max(1, c.rows)),
        "reward_model": Work(trained=learned, read=(1 + reward_model.WRONG) * reward_model.HELD_OUT * row),
        "generate_prefs": Work(read=twins * p.prefs.prompts * c.prompt, written=twins * candidates),
        "dpo": Work(trained=pairs, read=pairs + probes * c.prompt, written=probes * c.reply),
        # Both models, and what the base model makes of some replies in two contexts each.
        "evaluate": Work(read=2 * asked.read + 6 * WEIGHED * row, written=2 * asked.written),
    }


def calibrated(p: Params, text: Text) -> Speed:
    """Seconds a token here, by random weights of the model's layers, one and two of a large one: ten seconds."""
    from emotune.models import loading  # with torch: seconds

    config = estimate.config_of(p)
    layers = sizes.shape(config, p.model.base).layers
    if layers * config["hidden_size"] ** 2 <= SMALL:
        return Speed(*_timed(p, config, layers, text, loading.device()))
    one, two = (_timed(p, config, count, text, loading.device()) for count in (1, 2))
    return Speed(*(max(a, a + (layers - 1) * (b - a)) for a, b in zip(one, two, strict=True)))


def _timed(p: Params, config: Mapping[str, Any], layers: int, text: Text, device: Any) -> list[float]:
    """Seconds a token of a training step with LoRA, of reading, and of writing by many rows."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from emotune.generation.local import LAST

    cut = dict(config) | {"num_hidden_layers": layers, "layer_types": None}
    kind = AutoConfig.for_model(**{key: value for key, value in cut.items() if value is not None})
    with torch.random.fork_rng(), torch.device(device):
        own = AutoModelForCausalLM.from_config(kind, dtype=getattr(torch, p.model.dtype))
        model = get_peft_model(own, LoraConfig(r=p.sft.lora.rank, target_modules="all-linear", task_type="CAUSAL_LM"))
        rows = max(1, min(p.sft.batch_size, BUDGET // (own.num_parameters() * text.prompt)))
        ids = torch.randint(3, 500, (rows, text.prompt))
        wide = ids.repeat(-(-WIDTH // rows), 1)[: max(1, min(WIDTH, BUDGET // own.num_parameters()))]

        def train() -> None:
            hidden = model.get_base_model().model(input_ids=ids).last_hidden_state[:, ::2]
            own.get_output_embeddings()(hidden).float().log_softmax(-1).mean().backward()

        @torch.inference_mode()
        def read() -> Any:
            return own(input_ids=ids, use_cache=True, logits_to_keep=LAST).past_key_values

        with torch.inference_mode():
            kept = own(input_ids=wide[:, : text.prompt // 2], use_cache=True, logits_to_keep=LAST).past_key_values

        @torch.inference_mode()
        def write() -> None:
            own(input_ids=wide[:, :1], past_key_values=kept, use_cache=True).logits.float().topk(2)

        return [_seconds(train) / ids.numel(), _seconds(read) / ids.numel(), _seconds(write) / len(wide)]


def _seconds(run: Callable[[], Any]) -> float:
    """The least time of a few runs, after one that warms up; no new one begins after a second."""
    import torch

    run()
    times: list[float] = []
    while len(times) < 3 and sum(times) < 1:
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def disk(p: Params, text: Text, c: Counts) -> dict[str, int]:
    """The bytes of each stage's outs, of which DVC's cache holds another copy, and of checkpoints while it trains."""
    s = sizes.shape(estimate.config_of(p), p.model.base)
    row, adapters = round(6 * (c.prompt + c.reply)), dict.fromkeys(("sft", "dpo"), 4 * estimate.adapter(p, s))
    adapters["reward_model"] = 4 * sizes.adapter(s, p.reward_model.rank, None, 1)
    # And two checkpoints of it, with what the optimizer holds.
    trained = {name: (1 + 2 * 3 * (getattr(p, name).checkpoints > 0)) * size for name, size in adapters.items()}
    questions = c.questions + p.evaluate.control_contexts * len(p.data.labels)
    return {
        "prepare": round(1.25 * text.size),
        "base_model": 4 * s.parameters if p.model.base in pins.OWN else 0,
        "judges": 2 * text.size,
        "baseline": questions * row,
        "sft": trained["sft"],
        "reward_model": trained["reward_model"],
        "generate_prefs": p.prefs.prompts * (row + 1000),
        "dpo": trained["dpo"],
        "evaluate": 2 * questions * row,
    }


def params_of(content: Mapping[str, Any], name: str) -> Params:
    """A params.yaml, or a profile laid over one: where its data have no path yet, those that are here count."""
    data = content.get("data") or {"source": "embedded"}
    if data.get("source") != "embedded" and not (data.get("path") or data.get("name")):
        content = overlaid(content, {"data": {"source": "embedded"}})
    return check(Params, content, name)


def rows(p: Params, root: Path) -> dict[str, Any]:
    """What is known of each stage before it runs: the whole of `emotune estimate --json`."""
    text, counts = text_of(p, root)
    machine, speed, outs, work = estimate.here(), calibrated(p, text), disk(p, text, counts), works(p, text, counts)
    before = ran_before(root, p)
    stages = {}
    for stage, own in work.items():
        terms = estimate.memory(stage, p, text, machine)
        peak = sum(terms.values())
        seconds = own.aside + sum(map(mul, own[:3], speed))
        stages[stage] = {
            "peak": peak,
            "terms": terms,
            "fits": peak <= machine.memory,
            "tokens": own.tokens,
            "seconds": before[stage]["seconds"] if stage in before else round(seconds, 1),
            "seconds_by": "its last run" if stage in before else "calibration",
            "disk": outs[stage],
        }
        if stage in ("sft", "reward_model", "dpo"):
            least = estimate.memory(stage, _checkpointed(stage, p), text, machine)
            stages[stage]["checkpointed"] = sum(least.values())
        if peak > machine.memory:
            knob, value, then = estimate.best_knob(stage, p, text, machine)
            stages[stage]["knob"] = {"name": knob, "value": value, "peak": then}
    shape = sizes.shape(estimate.config_of(p), p.model.base)
    return {"parameters": shape.parameters, "machine": machine._asdict(), "tokens_by": counts.said, "stages": stages}


def _checkpointed(stage: str, p: Params) -> Params:
    own = getattr(p, stage).model_copy(update={"gradient_checkpointing": True})
    return p.model_copy(update={stage: own})


def ran_before(root: Path, p: Params) -> dict[str, dict[str, Any]]:
    """The line of costs.jsonl of each stage's last good run here with the same params."""
    result = {}
    for line in costs.lines(root / ".work/costs.jsonl"):
        stage = line["stage"]
        # Of another pipeline's stage, or another round's, the name has a folder.
        is_own = "/" not in stage and (STAGES / f"{stage}.py").is_file()
        if line["failed"] is None and is_own and "params" in line:
            kind = import_module(f"emotune.stages.{stage}").Params
            if line["params"] == costs.digest(part(kind, p).model_dump(mode="json")):
                result[stage] = line
    return result


def table(said: Mapping[str, Any]) -> str:
    """What `rows` says, for a terminal of 120 columns."""
    machine = said["machine"]
    where = "on its GPU" if machine["on_gpu"] else "of memory"
    head = (
        f"{said['parameters'] / 1e6:,.1f} M parameters; this machine has {machine['memory'] / GB:.1f} GB {where}; "
        f"tokens by {said['tokens_by']}"
    )
    names = list(dict.fromkeys(name for own in said["stages"].values() for name in own["terms"]))
    peaks = [["GB", "peak", "checkpointing", *names]]
    for stage, own in said["stages"].items():
        least = f"{own['checkpointed'] / GB:.2f}" if "checkpointed" in own else ""
        terms = (f"{own['terms'][name] / GB:.2f}" if own["terms"].get(name) else "" for name in names)
        peaks.append([stage, f"{own['peak'] / GB:.2f}", least, *terms])
    work = [["", "tokens", "seconds", "by", "disk, MB"]]
    for stage, own in said["stages"].items():
        figures = [f"{own['tokens']:,}", f"{own['seconds']:,.0f}", own["seconds_by"], f"{own['disk'] / 1e6:,.1f}"]
        work.append([stage, *figures])
    every = said["stages"].values()
    work.append(
        [
            "all",
            f"{sum(own['tokens'] for own in every):,}",
            f"{sum(own['seconds'] for own in every):,.0f}",
            "",
            f"{sum(own['disk'] for own in every) / 1e6:,.1f}",
        ]
    )
    knobs = [
        f"{stage} does not fit: {own['knob']['name']}: {json.dumps(own['knob']['value'])} saves most, "
        f"{own['knob']['peak'] / GB:.2f} GB are left"
        for stage, own in said["stages"].items()
        if "knob" in own
    ]
    notes = "disk: outs, which DVC's cache may hold once more, and checkpoints; a base model of the Hub comes on top"
    return "\n\n".join([head, aligned(peaks), *(knobs or ["every stage fits"]), aligned(work), notes])
