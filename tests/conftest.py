"""What several test modules share: a tiny tokenizer and model of our own, and the inputs beside the project."""

import gc
import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

import warm
from emotune.core import processes

# Each worker imports torch, and so do most stages that the tests start.
processes.collect_when_imported()

# Before any test imports torch: one thread for each of several workers, and nothing that could reach the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What the tests start need not compile the package each time, which is what an environment such as CI's may ask for.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell starts what runs in the background deaf to Ctrl-C, and so would be all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]
# The pipeline as dvc.yaml tells it, which alone knows the paths.
STAGES: dict[str, dict[str, Any]] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
LABELS = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first: no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)


@pytest.fixture(scope="module", autouse=True)
def what_is_imported_is_never_garbage() -> None:
    """And a trainer that looks for some there, as each does, looks for half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def tracking_is_off(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes an MLflow store, except those of the tracker itself."""
    if request.module.__name__ != "test_tracking":
        monkeypatch.setenv("EMOTUNE_TRACKING", "off")


@pytest.fixture
def shared() -> Path:
    """The folder of real inputs beside the project; a test that needs it is skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs real inputs in {folder}")
    return folder


@pytest.fixture(scope="session")
def dialogues() -> list[Any]:
    """A few invented dialogues, enough to make a tokenizer of."""
    from emotune.core.dialogue import Dialogue, alternate

    texts = [
        ("I lost my keys again.", "Where did you see them last?", "On the kitchen table.", "Then let us look there!"),
        ("We won the match!", "That is great news!", "Will you come to the party?", "Of course I will."),
        ("Why did you shout at me?", "I am so sorry about that.", "You should be.", "It was wrong of me."),
        ("There is a spider on the wall.", "Where? I cannot look!", "Behind you.", "Please take it outside."),
        ("Could you open the window?", "Yes, it is warm in here.", "Thank you very much.", "You are welcome."),
    ]
    emotions = ("sadness", "neutral", "happiness", "surprise")
    return [Dialogue(f"invented/{number}", alternate(talk, emotions)) for number, talk in enumerate(texts)]


@pytest.fixture(scope="session")
def base(dialogues: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model as the base_model stage leaves it: an embedded tokenizer, a random Llama and base.json."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from emotune.core import records
    from emotune.models import pins
    from emotune.models.pretraining import contents, make_tokenizer

    folder = tmp_path_factory.mktemp("base")
    tokenizer = make_tokenizer(contents(dialogues), LABELS, vocabulary=400)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    records.write_json(folder / pins.BASE_FILE, {"name": pins.EMBEDDED})
    return folder


@pytest.fixture
def tokenizer(base: Path) -> Any:
    """The tiny embedded tokenizer, speaking the default template; a new one for each test."""
    from emotune.models import loading

    return loading.load_tokenizer(base, "out_inst_uni")


@pytest.fixture(scope="session")
def model_choice() -> Any:
    """The `model` section for `base`."""
    from emotune.models.params import Model

    return Model(base="embedded", revision=None, dtype="float32", attention="sdpa", quantization="none", context=256)


@pytest.fixture(scope="session")
def tuned(base: Path, dialogues: list[Any], model_choice: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/ with all that answers and evaluates: base, random adapters for sft and dpo, a judge of few words."""
    import torch
    from peft import LoraConfig, get_peft_model

    from emotune.core import records
    from emotune.judges import emotion, files, matcher
    from emotune.models import bradley_terry, loading

    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(base, folder / "base")
    for seed, name in enumerate(("sft", "dpo")):
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        adapted = get_peft_model(loading.load_base(base, model_choice), lora)
        loading.save_adapter(adapted, loading.load_tokenizer(base, "out_inst_uni"), base, folder / name)
    scored = bradley_terry.untrained(base, model_choice, bradley_terry.prompter(base, None, 256, 2))
    torch.nn.init.normal_(scored.score.weight)
    head = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["score"], task_type="SEQ_CLS")
    loading.save_adapter(get_peft_model(scored, head), loading.load_tokenizer(base, None), base, folder / "reward")
    records.write_json(folder / "reward" / bradley_terry.SCALE, {"zero": 0.0, "turns": 2})
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    texts, labels = [turn.content for turn in turns], [turn.emotion for turn in turns]
    (folder / "judges").mkdir()
    path = folder / "judges" / "evaluate.skops"
    files.save(emotion.train_emotion(texts, labels, "characters", 7), path)
    files.save_prior(replace(files.load(path), prior=emotion.shares(labels, "characters", 7), tau=0.5), path)
    files.save(matcher.train_matcher(dialogues, 7), folder / "judges" / "fit.skops")
    return folder


# What makes the whole pipeline of params.yaml take a minute. Some 48 steps of sft and of dpo are enough for a row of
# history to sum up two of them: where a checkpoint stood between these, a killed run would not end with the same curve.
TINY: dict[str, Any] = {
    "data.dialogues": 400,
    "model.base": "scratch",
    "pretrain.vocabulary": 1000,
    "pretrain.learning_rate": 0.015,
    "pretrain.hidden_size": 48,
    "pretrain.layers": 2,
    "pretrain.heads": 2,
    "pretrain.epochs": 3,
    "evaluate.prompts": 40,
    "evaluate.control_contexts": 5,
    "evaluate.resamples": 100,
    "sft.epochs": 1.2,
    "sft.learning_rate": 0.002,
    "sft.batch_size": 8,
    "sft.checkpoints": 4,
    "sft.lora.rank": 4,
    # Some 30 steps, as a curve's rows are.
    "reward_model.contrast_pairs": 240,
    "reward_model.rank": 2,
    "reward_model.batch_size": 8,
    "prefs.prompts": 60,
    "prefs.emotions": "dataset",
    # So small a model has hardly a clean reply to be a contrast.
    "prefs.rejected": "worst",
    "prefs.attempts": 3,
    "prefs.candidates": 4,
    "prefs.target_score_range": 0.5,
    "prefs.min_chosen_score": 1.0,
    "prefs.min_clean_confidence": 0.0,
    "prefs.validation": 0.25,
    # What so small a model says is not what the audit is for.
    "prefs.audit.min_yield": 0.0,
    "prefs.audit.min_pairs_per_emotion": 0,
    "prefs.audit.min_chosen_longer": 0.0,
    "prefs.audit.max_chosen_longer": 1.0,
    "prefs.audit.max_duplicate_prompts": 1.0,
    "prefs.audit.max_duplicate_chosen": 1.0,
    "prefs.audit.max_prompts_in_test": 1.0,
    "prefs.sampling.temperature": 0.7,
    "prefs.sampling.max_new_tokens": 32,
    "prefs.sampling.repetition_penalty": 1.0,
    "dpo.epochs": 3,
    "dpo.learning_rate": 0.0005,
    "dpo.checkpoints": 4,
    "dpo.batch_size": 2,
    "dpo.sft_weight": 0.0,
    "dpo.control_contexts": 3,
}


def write_params(folder: Path, changes: Mapping[str, Any], pipeline: str = ".") -> None:
    """A pipeline's params.yaml with the values of some dotted keys changed, in a folder; comments stay."""
    yaml = YAML()
    content = yaml.load((ROOT / pipeline / "params.yaml").read_text("utf-8"))
    for key, value in changes.items():
        *path, last = key.split(".")
        section = reduce(getitem, path, content)
        assert last in section, f"params.yaml has no {key}"
        section[last] = value
    yaml.dump(content, folder / "params.yaml")


def flags(stage: str, stages: Mapping[str, Any] = STAGES) -> list[str]:
    """`--out`, `models/sft` ...: what dvc.yaml hands to a stage."""
    return stages[stage]["cmd"].split()[3:]


def declared(stage: str) -> list[str]:
    """The outs, metrics and plots of a stage, files and folders."""
    return [
        path for kind in ("outs", "metrics", "plots") for out in STAGES[stage].get(kind, []) for path in _paths_of(out)
    ]


def _paths_of(out: str | Mapping[str, Any]) -> list[str]:
    return [out] if isinstance(out, str) else list(out)


def run_stage(stage: str, folder: Path, stages: Mapping[str, Any] = STAGES) -> None:
    """A stage in this process, in `folder`, with the paths of dvc.yaml; untracked."""
    from emotune.runs import params
    from emotune.runs.costs import Cost
    from emotune.runs.stage import run

    words = flags(stage, stages)
    paths = {flag[2:].replace("-", "_"): Path(path) for flag, path in zip(words[::2], words[1::2], strict=True)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        patch.setenv("EMOTUNE_TRACKING", "off")
        module = stages[stage]["cmd"].split()[2]
        run(importlib.import_module(f"emotune.stages.{module}"), params.whole(params.PARAMS), paths, Cost(stage))


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file in a folder, by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def voted(dpo: str = "d" * 64, sft: str = "e" * 64, **changes: Any) -> dict[str, Any]:
    """What `emotune votes` writes, of ten votes on two models."""
    rate = {"value": 0.75, "low": 0.4, "high": 0.9}
    whole = {
        "votes": 10,
        "voters": 2,
        "questions": 6,
        "models": [{"model": "dpo", "adapter": dpo, "here": True}, {"model": "sft", "adapter": sft, "here": True}],
        "pairs": [{"models": [dpo, sft], "votes": 10, "wins": [6, 2], "both_good": 1, "both_bad": 1, "win_rate": rate}],
        "strengths": [
            {"adapter": sft, "group": 0, "value": -0.5, "low": -1.0, "high": 0.1},
            {"adapter": dpo, "group": 0, "value": 0.5, "low": -0.1, "high": 1.0},
        ],
        "agreement": {"questions": 4, "value": 0.6, "low": 0.2, "high": 1.0},
        "scores": {"evaluating judge": rate | {"votes": 7, "equal": 1}},
    }
    return whole | changes


@dataclass
class Pipeline:
    """A folder in which all stages ran, and what each of them wrote or changed there."""

    folder: Path
    written: dict[str, set[str]] = field(default_factory=dict)

    def run(self) -> None:
        for stage in STAGES:
            before = contents(self.folder)
            run_stage(stage, self.folder)
            after = contents(self.folder)
            self.written[stage] = {path for path in after.keys() | before.keys() if after.get(path) != before.get(path)}


@pytest.fixture(scope="session")
def of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what is made once for all workers, under a lock."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def warm_python(of_all_workers: Path) -> Path:
    """The folder of a python that starts a stage in a moment."""
    folder = of_all_workers / "warm"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            warm.start(folder, os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid())
    return folder / "bin"


@pytest.fixture
def warm_processes(warm_python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test starts by `sys.executable` or from beside it, and what that starts, has imported the libraries."""
    monkeypatch.setattr(sys, "executable", f"{warm_python}/python")


@pytest.fixture(scope="module")
def warm_module(warm_python: Path) -> Iterator[None]:
    """The same for a whole module, its fixtures with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", f"{warm_python}/python")
        yield


@pytest.fixture(scope="session")
def pipeline(of_all_workers: Path) -> Pipeline:
    """The whole embedded pipeline with tiny settings, once for all workers: look, do not touch."""
    folder = of_all_workers / "pipeline"
    note = folder.with_suffix(".json")
    with FileLock(folder.with_suffix(".lock")):
        if note.exists():
            return Pipeline(folder, {stage: set(paths) for stage, paths in json.loads(note.read_text()).items()})
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_params(folder, TINY)
        done = Pipeline(folder)
        done.run()
        note.write_text(json.dumps({stage: sorted(paths) for stage, paths in done.written.items()}))
        return done


# What Chromium asks the network for by itself is turned off; what a page asks for, `page` notices.
CHROMIUM = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium with a profile of its own, for one module: its event loop is in nobody else's way."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium on the PATH")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=list(CHROMIUM))
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """An empty Playwright page, 1280 x 900. The test fails where it asks for anything that is neither a file nor on
    loopback (it gets none of that), and where its own script fails.
    """
    faults: list[str] = []

    def answer(route: Any) -> None:
        where = urlsplit(route.request.url)
        if where.scheme in ("file", "data", "blob") or where.hostname in ("127.0.0.1", "localhost"):
            route.continue_()
        else:
            faults.append(f"asked for {route.request.url}")
            route.abort()

    context = browser.new_context(viewport={"width": 1280, "height": 900}, service_workers="block")
    context.route("**/*", answer)
    opened = context.new_page()
    opened.on("pageerror", lambda error: faults.append(f"script failed: {error}"))
    yield opened
    context.close()
    assert not faults, faults


def entered_too_early(page: Any, url: str, field: str, text: str) -> None:
    """Enter a text in a field before the page is told what it is about; then it is told."""
    held: list[Any] = []
    page.route("**/about", lambda route: held.append(route))
    page.goto(url)
    page.get_by_label(field).fill(text)
    page.keyboard.press("Enter")
    # Time enough for a page that does not wait to be answered.
    page.wait_for_timeout(500)
    held[0].continue_()
