"""Laws of `emotune publish`: what is sent, what the cards say, what is refused, against a Hub on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Hub, Refused
from ruamel.yaml import YAML

from conftest import LABELS, ROOT, contents, write_params
from emotune.core import records
from emotune.core.errors import InputError
from emotune.core.sections import read_yaml
from emotune.faces import cli
from emotune.publish import cards, example, gate, hub, parts, registry, release
from emotune.publish.facts import Facts, as_run, facts_of
from emotune.publish.gate import Licenses, forbidden, licenses
from emotune.runs import tables
from emotune.runs.params import parse

pytestmark = pytest.mark.usefixtures("warm_module")

DVC_YAML = """\
stages:
  prepare: {cmd: "true", params: [data], metrics: [metrics/prepare.json: {cache: false}]}
  base_model: {cmd: "true", params: [model.base, pretrain], outs: [models/base]}
  sft: {cmd: "true", params: [model, sft, system_prompt, template], outs: [models/sft]}
  generate_prefs: {cmd: "true", params: [prefs, reward], outs: [data/prefs]}
  dpo: {cmd: "true", params: [dpo, model, system_prompt], outs: [models/dpo]}
  evaluate: {cmd: "true", params: [evaluate], metrics: [metrics/evaluate.json: {cache: false}]}
"""
CHANGES = {"sft.lora.rank": 4, "prefs.validation": 0.25, "evaluate.sampling.guidance": 1.5}
BETTER = {"difference": 0.1, "low": 0.05, "high": 0.15, "p": 0.002}
ADAPTER = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "history.csv",
    "tokenizer.json",
    "tokenizer_config.json",
}
BASE = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
PREFS = {"README.md", "data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"}
# Runs what it is told in one process: importing torch for each call would take most of the time.
DRIVER = """
import contextlib, io, json, os, sys, traceback
sys.modules["bitsandbytes"] = None  # peft would import it, and with it torch's compiler
from emotune.faces import cli
answers = sys.stdout
for line in sys.stdin:
    asked = json.loads(line)
    os.chdir(asked["folder"])
    os.environ.update(asked["environment"])
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            if "code" in asked:
                exec(asked["code"], {})
            code = 0 if "code" in asked else cli.main(asked["arguments"])
        except BaseException:
            traceback.print_exc()
            code = 70
    print(json.dumps([code, told.getvalue()]), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as a run leaves it: params.yaml, models, pairs, metrics and dvc.lock, all in git or in DVC."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    shutil.copytree(base, folder / "models" / "base")
    shutil.copytree(ROOT / "metrics", folder / "metrics", ignore=shutil.ignore_patterns("real"))
    write_params(folder, CHANGES)
    evaluated = records.read_metrics(folder / "metrics/evaluate.json")
    evaluated["paired"]["sft_to_dpo"]["replies"]["macro_f1"] = BETTER
    evaluated["paired"]["sft_to_dpo"]["control"]["macro_accuracy"] = BETTER
    evaluated["dpo"]["replies"]["macro_f1"] = {"value": 0.123456, "low": 0.098765, "high": 0.145678}
    records.write_metrics(folder / "metrics/evaluate.json", evaluated)
    for seed, name in ((1, "sft"), (2, "dpo")):
        write_adapter(folder / "models" / "base", folder / "models" / name, seed)
    pairs = [pair(number) for number in range(8)]
    records.write_jsonl(folder / "data/prefs/train.jsonl", pairs[2:])
    records.write_jsonl(folder / "data/prefs/validation.jsonl", pairs[:2])
    (folder / "dvc.yaml").write_text(DVC_YAML)
    (folder / ".gitignore").write_text("/models\n/data/prefs\n.work/\n")
    run(folder, "git", "init", "--quiet", "--initial-branch", "main")
    run(folder, "dvc", "init", "--quiet")
    run(folder, "dvc", "commit", "--quiet", "--force")
    commit(folder)
    return folder


def write_adapter(base: Path, out: Path, seed: int) -> None:
    import torch

    from emotune.models import loading
    from tiny import with_tags

    torch.manual_seed(seed)
    tokenizer = loading.load_tokenizer(base, "out_inst_uni")
    model = with_tags(base, tokenizer, r=4, init_lora_weights=False, use_rslora=True)
    loading.save_adapter(model, tokenizer, base, out)


def pair(number: int) -> dict[str, Any]:
    return {
        "id": f"invented/{number}/anger",
        "dialogue": f"invented/{number}",
        "prompt": f"<s>[INST] Hello {number}. [/INST]",
        "history": [{"role": "user", "content": f"Hello {number}.", "emotion": "neutral"}],
        "emotion": "anger",
        "attempts": 1,
        "chosen": "Go away!",
        "rejected": "Hello.",
        "chosen_score": 9.5 + number,
        "rejected_score": 0.25,
        "chosen_judged": "anger",
        "rejected_judged": "neutral",
        "chosen_copy": False,
        "rejected_copy": True,
    }


def run(folder: Path, *command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"} | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "DVC_NO_ANALYTICS": "1",
    }
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}\n{ended.stderr}"


def commit(folder: Path) -> None:
    run(folder, "git", "add", ".")
    name = ("-c", "user.name=A tester", "-c", "user.email=tester@localhost")
    run(folder, "git", *name, "commit", "--quiet", "--allow-empty", "-m", "What a run left")


@pytest.fixture
def repository(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made`, ours to spoil."""
    folder = tmp_path / "repository"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder


@pytest.fixture(scope="module")
def dry(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a dry run of `made` writes; look, do not touch."""
    folder = tmp_path_factory.mktemp("dry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        assert cli.main(["publish", "--dry-run", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with Hub() as server:
        yield server
        server.shutdown()


@pytest.fixture
def fresh(server: Hub) -> Hub:
    """The server, with nothing on it."""
    server.repositories.clear()
    server.contents.clear()
    server.log.clear()
    server.fault = lambda method, path: None
    return server


def environment(server: Hub, home: Path) -> dict[str, str]:
    """Of a process that knows this Hub alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_") and name != "DVC_ROOT"}
    return kept | {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "EMOTUNE_TRACKING": "off",
    }


class Teller:
    """The driver's process: each call is one `emotune ...`, or some code, in a folder."""

    def __init__(self, server: Hub, home: Path) -> None:
        self.home = home
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            env=environment(server, home),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, folder: Path, *arguments: str, **asked: Any) -> tuple[int, str]:
        assert self.process.stdin
        assert self.process.stdout
        asked = {"arguments": arguments, "folder": str(folder), "environment": {"HF_TOKEN": TOKEN}} | asked
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        code, told = json.loads(self.process.stdout.readline())
        return code, told


@pytest.fixture(scope="module")
def emotune(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teller]:
    teller = Teller(server, tmp_path_factory.mktemp("home"))
    yield teller
    assert teller.process.stdin
    teller.process.stdin.close()
    teller.process.wait(timeout=30)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def head(card: str) -> Any:
    return YAML(typ="safe").load(card.split("---\n")[1])


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.unlink()
    path.write_text(text.replace(old, new))


# What is written.


def test_a_dry_run_writes_what_each_repository_would_hold_and_no_more(dry: Path) -> None:
    assert {path.name: files(path) for path in dry.iterdir() if path.name != ".emotune.json"} == {
        "base": BASE,
        "sft": ADAPTER,
        "dpo": ADAPTER,
        "prefs": PREFS,
    }


def test_a_second_dry_run_writes_the_same_bytes(repository: Path, dry: Path, tmp_path: Path) -> None:
    assert cli.main(["publish", "--dry-run", str(tmp_path / "again")]) == 0
    for name in files(dry):
        assert (tmp_path / "again" / name).read_bytes() == (dry / name).read_bytes(), name


def test_a_dry_run_takes_the_place_of_nothing_but_a_dry_run(
    repository: Path, dry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(dry, tmp_path / "again")
    assert cli.main(["publish", "--dry-run", str(tmp_path / "again")]) == 0
    for name in ("notes.txt", "base/kept/notes.txt", "sft/adapter_model.safetensors"):
        path = tmp_path / "again" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("somebody's")
        assert cli.main(["publish", "--dry-run", str(tmp_path / "again")]) == 2
        assert f"{name} there was written by no dry run" in capsys.readouterr().err
        assert path.read_text() == "somebody's"
        path.unlink()


def test_a_dry_run_leaves_the_outs_of_the_stages_alone(repository: Path, made: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links/base").symlink_to(repository / "models/base")
    for folder in ("models", "data", str(tmp_path / "links")):
        assert cli.main(["publish", "--dry-run", folder]) == 2
    for folder in ("models", "data"):
        assert files(repository / folder) == files(made / folder)


def test_pairs_are_parquet_with_the_published_columns_first(dry: Path, made: Path) -> None:
    from pyarrow import parquet

    table = parquet.read_table(dry / "prefs/data/train-00000-of-00001.parquet")
    assert table.column_names[:5] == ["prompt", "chosen", "rejected", "chosen_score", "rejected_score"]
    assert table.to_pylist() == list(records.read_jsonl(made / "data/prefs/train.jsonl"))


def test_the_card_of_the_pairs_says_what_each_column_holds(dry: Path) -> None:
    from pyarrow import parquet

    columns = parquet.read_table(dry / "prefs/data/train-00000-of-00001.parquet").column_names
    told = re.findall(r"^\| `(\w+)` \| (.*) \|$", (dry / "prefs/README.md").read_text(), flags=re.MULTILINE)
    assert [name for name, meaning in told if meaning] == columns


def test_an_adapter_names_the_base_model_that_is_published_with_it(dry: Path) -> None:
    config = records.read_json(dry / "dpo/adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("OWNER/emotune-base", "main")


def test_a_card_s_code_guides_as_the_replies_of_its_figures_were_guided(dry: Path) -> None:
    codes = {name: code_of((dry / name / "README.md").read_bytes()) for name in ("base", "sft", "dpo")}
    by_code = {name: "guidance_scale=1.5, negative_prompt_ids=neutral" in code for name, code in codes.items()}
    # The base model is told no emotion, so nothing can guide it.
    assert by_code == {"base": False, "sft": True, "dpo": True}


@pytest.mark.parametrize(("tag", "revision"), [((), "small"), (("--tag", "v1"), "small-v1")])
def test_an_adapter_names_the_branch_that_its_base_model_lies_in(
    tag: tuple[str, ...], revision: str, repository: Path, tmp_path: Path
) -> None:
    write_params(repository, CHANGES | {"publish.base": "emotune-base@small"})
    commit(repository)
    assert cli.main(["publish", "--dry-run", str(tmp_path / "out"), *tag]) == 0
    config = records.read_json(tmp_path / "out/dpo/adapter_config.json")
    assert (config["base_model_name_or_path"], config["revision"]) == ("OWNER/emotune-base", revision)
    assert f'"OWNER/emotune-base", revision="{revision}"' in (tmp_path / "out/dpo/README.md").read_text()


def test_a_card_s_head_has_what_the_hub_and_trl_look_for(dry: Path) -> None:
    found = head((dry / "dpo/README.md").read_text())
    assert found["base_model"] == "OWNER/emotune-base"
    assert found["datasets"] == ["OWNER/emotune-prefs"]
    assert found["license"] == "apache-2.0"
    assert found["library_name"] == "peft"
    assert {"trl", "dpo", "lora", "generated_from_trainer"} <= set(found["tags"])
    assert found["base_model_relation"] == "adapter"
    assert head((dry / "prefs/README.md").read_text())["size_categories"] == ["n<1K"]
    (result,) = found["model-index"][0]["results"]
    assert {
        "type": "f1",
        "name": "macro F1",
        "value": 0.123456,
        "args": {"low": 0.098765, "high": 0.145678, "level": 0.95},
    } in result["metrics"]
    assert result["dataset"]["split"] == "test"
    assert head((dry / "prefs/README.md").read_text())["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*.parquet"},
        {"split": "validation", "path": "data/validation-*.parquet"},
    ]


@pytest.mark.parametrize(
    ("rows", "name"), [(999, "n<1K"), (1000, "1K<n<10K"), (123_456, "100K<n<1M"), (2_000_000, "1M<n<10M")]
)
def test_a_dataset_s_size_is_called_as_the_hub_calls_it(rows: int, name: str) -> None:
    assert cards.size(rows) == name


def test_a_card_says_where_the_model_comes_from(dry: Path, made: Path) -> None:
    card = (dry / "sft/README.md").read_text()
    known = subprocess.run(["git", "rev-parse", "HEAD"], cwd=made, capture_output=True, text=True).stdout.strip()
    locked = read_yaml(made / "dvc.lock")
    assert f"git checkout {known}\nmake repro\n" in card
    assert f"| `models/sft` | `{locked['stages']['sft']['outs'][0]['md5']}` |" in card
    assert "0.123 [0.099, 0.146]" in card
    assert "<s>[INST] [EMOTION] neutral [/EMOTION] I lost my keys again. [/INST] [EMOTION] anger [/EMOTION]" in card
    assert "Published although" not in card
    assert "rank: 4" in card


def test_settings_in_a_card_name_no_folder_of_this_machine() -> None:
    stage = {"params": {"params.yaml": {"model": {"base": "/home/me/llama", "context": 256}, "data": {"name": "a/b"}}}}
    shown = cards._settings({"stages": {"sft": stage}}, "sft")
    assert shown == "model:\n  base: llama\n  context: 256\ndata:\n  name: a/b"


def test_data_and_base_model_from_elsewhere_are_named_with_their_licences_and_no_path(
    repository: Path, tmp_path: Path
) -> None:
    official = {"data.source": "folder", "data.path": "/home/me/data.zip", "data.revision": "d" * 64}
    base = {"model.base": "/home/me/llama", "model.revision": "b" * 64, "publish.base_license": "llama2"}
    write_params(repository, CHANGES | official | base)
    run(repository, "dvc", "commit", "--quiet", "--force")
    commit(repository)
    assert cli.main(["publish", "--dry-run", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".emotune.json", "sft", "dpo", "prefs"}
    for name in ("sft", "dpo", "prefs"):
        card = (tmp_path / "out" / name / "README.md").read_text()
        assert head(card)["license"] == "cc-by-nc-sa-4.0"
        assert "The official DailyDialog" in card
        assert "make repro DATA=path/of/the/data MODEL=path/of/llama" in card
        assert f"(a local model, its files' sha256 `{'b' * 64}`), licensed under `llama2`" in card
        assert "/home/me" not in card
    assert records.read_json(tmp_path / "out/dpo/adapter_config.json")["base_model_name_or_path"] == "llama"
    assert "base_model" not in head(card)


def test_a_card_says_what_a_base_model_of_ours_has_read(repository: Path, dry: Path, tmp_path: Path) -> None:
    write_params(repository, CHANGES | {"model.base": "scratch"})
    run(repository, "dvc", "commit", "--quiet", "--force")
    commit(repository)
    assert cli.main(["publish", "--dry-run", str(tmp_path / "out")]) == 0
    embedded = "licensed under `apache-2.0`. It has read dialogues of emotune's grammar alone."
    scratch = "was trained on the same data, and has the same licence."
    for name in ("base", "sft", "dpo", "prefs"):
        assert embedded in (dry / name / "README.md").read_text()
        assert scratch in (tmp_path / "out" / name / "README.md").read_text()


def test_bars_rise_from_the_least_to_the_greatest() -> None:
    assert cards.bars([0.0, 7.0, 3.0]) == "▁█▄"
    assert cards.bars([2.0, 2.0]) == "▁▁"


def test_a_long_curve_is_shown_by_few_rows_and_its_last() -> None:
    text = "step,loss\n" + "".join(f"{step},{1 / step}\n" for step in range(1, 101))
    rows = [line for line in cards.curve(text).splitlines() if re.match(r"\| \d", line)]
    assert len(rows) == 12
    assert rows[-1] == "| 100 | 0.01 |"


# Licences.


@pytest.mark.parametrize(
    ("source", "wanted", "allowed"),
    [
        ("apache-2.0", "mit", True),
        ("cc-by-4.0", "cc-by-nc-4.0", True),
        ("cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0", True),
        ("cc-by-nc-sa-4.0", "apache-2.0", False),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", False),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", True),
        ("cc-by-nc-4.0", "cc-by-4.0", False),
        ("cc-by-sa-4.0", "cc-by-4.0", False),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", False),
        ("gemma", "gemma", True),
        ("gemma", "apache-2.0", False),
    ],
)
def test_a_licence_is_possible_where_that_of_the_data_allows_it(source: str, wanted: str, allowed: bool) -> None:
    assert (forbidden(source, wanted) is None) is allowed


def licensed(tmp_path: Path, **changes: Any) -> tuple[str, str, str]:
    write_params(tmp_path, {key.replace("__", "."): value for key, value in changes.items()})
    return licenses(parse(tmp_path / "params.yaml"))


def test_dailydialog_is_published_under_its_own_licence_or_not_at_all(tmp_path: Path) -> None:
    official = {"data__source": "folder", "data__path": "somewhere"}
    assert licensed(tmp_path, **official)[:2] == ("cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0")
    with pytest.raises(InputError, match=r"publish.license: apache-2.0 is not possible: the data is under cc-by-nc-sa"):
        licensed(tmp_path, **official, publish__license="apache-2.0")
    mirrored = {"data__source": "hub", "data__name": "somebody/Daily_Dialog"}
    with pytest.raises(InputError, match=r"publish.data_license: the data is under cc-by-nc-sa-4.0, got mit"):
        licensed(tmp_path, **mirrored, publish__data_license="mit")


def test_data_and_base_model_of_one_s_own_have_to_state_their_licence(tmp_path: Path) -> None:
    own = {"data__source": "jsonl", "data__path": "somewhere"}
    with pytest.raises(InputError, match=r"publish.data_license must state .* data.source is jsonl"):
        licensed(tmp_path, **own)
    assert licensed(tmp_path, **own, publish__data_license="cc-by-4.0")[0] == "cc-by-4.0"
    other = {"model__base": "owner/model", "model__revision": "0" * 40}
    with pytest.raises(InputError, match=r"publish.base_license must state the licence of owner/model"):
        licensed(tmp_path, **other)
    assert licensed(tmp_path, **other, publish__base_license="llama2")[2] == "llama2"


def test_the_data_is_what_dvc_lock_says_not_what_params_yaml_says_since(made: Path) -> None:
    content, locked = read_yaml(made / "params.yaml"), read_yaml(made / "dvc.lock")
    ran = locked["stages"]["prepare"]["params"]["params.yaml"]["data"]
    ran |= {"source": "folder", "path": "somewhere"}
    # A key that is newer than the run.
    del ran["limit"]
    found = as_run(content, locked)
    assert licenses(found)[0] == "cc-by-nc-sa-4.0"
    assert (found.data.limit, found.sft.lora.rank) == (None, 4)


# The gate.


def objections(made: Path, tmp_path: Path, **changes: Any) -> list[str]:
    for name in ("evaluate.json", "prefs.json"):
        found = records.read_metrics(made / "metrics" / name)
        if name == "evaluate.json" and "dpo" in changes:
            found["paired"]["sft_to_dpo"]["control"]["macro_accuracy"] = changes["dpo"]
        if name == "prefs.json":
            found |= changes.get("prefs", {})
        records.write_metrics(tmp_path / name, found)
    whole = parse(made / "params.yaml")
    return gate.objections(whole, tmp_path, changes.get("dirty", False), changes.get("stale", []))


def test_nothing_speaks_against_a_run_that_is_better_audited_committed_and_current(made: Path, tmp_path: Path) -> None:
    assert objections(made, tmp_path) == []


@pytest.mark.parametrize("test", [BETTER | {"p": 0.05}, BETTER | {"difference": -0.1}, BETTER | {"difference": 0.0}])
def test_dpo_that_is_not_better_by_the_paired_test_is_refused(made: Path, tmp_path: Path, test: dict[str, Any]) -> None:
    (found,) = objections(made, tmp_path, dpo=test)
    assert found.startswith("dpo is not better than sft in control: ")


@pytest.mark.parametrize("p", [0.002, 0.3])
def test_where_seeds_were_tried_the_test_is_over_them_and_else_the_refusal_says_one_seed(
    made: Path, tmp_path: Path, p: float
) -> None:
    evaluated = records.read_metrics(made / "metrics/evaluate.json")
    columns = [f"{model} {name}" for model in ("sft", "dpo") for name in tables.TESTED]
    run = {key: tables.figure(evaluated[key.split()[0]], tables.COLUMNS[key[4:]]).value for key in columns}
    step = {"of": "sft → dpo", "metric": "control", "seeds": 5, "mean": 0.1, "low": -0.1, "high": 0.3, "p": p}
    records.write_csv(tmp_path / "studies/seeds.csv", columns, [run])
    records.write_csv(tmp_path / "studies/seeds-effects.csv", list(step), [step])
    found = objections(made, tmp_path)
    expected = "dpo is not better than sft in control: +0.100 [-0.100, +0.300], p 0.300, "
    assert [line.startswith(expected) for line in found] == ([True] if p == 0.3 else [])
    assert all(line.endswith("tested over 5 seeds and the dialogues") for line in found)
    # Of another run, whatever it says.
    records.write_csv(tmp_path / "studies/seeds.csv", columns, [run | {"sft control": 0.123}])
    (alone,) = objections(made, tmp_path, dpo=BETTER | {"p": 0.05})
    assert alone.endswith("tested over the dialogues, of one seed alone (`emotune study seeds` runs others)")


@pytest.mark.parametrize(("p", "refused"), [(0.01, False), (0.05, True)])
def test_where_a_prompt_does_as_well_as_sft_that_is_an_objection(
    made: Path, tmp_path: Path, p: float, refused: bool
) -> None:
    evaluated = records.read_metrics(made / "metrics/evaluate.json")
    step = {"control": {"macro_accuracy": {"difference": 0.1, "low": 0.0, "high": 0.2, "p": p}}}
    evaluated |= {"best_prompt": "few-shot", "paired": evaluated["paired"] | {"best_prompt_to_sft": step}}
    records.write_metrics(tmp_path / "evaluate.json", evaluated)
    shutil.copy(made / "metrics/prefs.json", tmp_path)
    told = gate.objections(parse(made / "params.yaml"), tmp_path, dirty=False, stale=[])
    words = "Prompting is enough here: sft is not better in control than few-shot: +0.100 [+0.000, +0.200], p 0.050"
    assert told == [words] * refused


def test_dpo_that_lost_fit_is_refused(made: Path, tmp_path: Path) -> None:
    for high, refused in ((-0.001, True), (0.001, False)):
        evaluated = records.read_metrics(made / "metrics/evaluate.json")
        test = {"difference": -0.05, "low": -0.1, "high": high, "p": 0.04}
        evaluated["paired"]["sft_to_dpo"]["replies"]["hits_at_1"] = test
        records.write_metrics(tmp_path / "evaluate.json", evaluated)
        shutil.copy(made / "metrics/prefs.json", tmp_path)
        told = gate.objections(parse(made / "params.yaml"), tmp_path, dirty=False, stale=[])
        assert [line.partition(":")[0] for line in told] == ["dpo lost fit"] * refused


def test_pairs_that_break_the_audit_are_refused(made: Path, tmp_path: Path) -> None:
    (found,) = objections(made, tmp_path, prefs={"chosen_is_longer": 0.99})
    assert found.startswith("prefs.audit.max_chosen_longer: 0.99 ")


def test_a_dirty_tree_is_refused_and_nothing_is_sent(repository: Path, fresh: Hub, emotune: Teller) -> None:
    (repository / "new.txt").write_text("in no commit")
    code, told = emotune(repository, "publish")
    assert code == 1
    assert "the working tree has changes that are in no commit" in told
    assert fresh.log == []


def test_a_stale_lock_is_refused_and_a_forced_card_says_why(repository: Path, tmp_path: Path) -> None:
    changed(repository / "params.yaml", "rank: 4", "rank: 5")
    commit(repository)
    assert cli.main(["publish", "--dry-run", str(tmp_path / "out")]) == 1
    assert cli.main(["publish", "--dry-run", str(tmp_path / "out"), "--force", "a demonstration"]) == 0
    card = (tmp_path / "out/dpo/README.md").read_text()
    assert "dvc.lock is not current: sft: param sft.lora.rank is 5, and 4 in dvc.lock" in card
    assert "The reason given: a demonstration" in card
    # It tells of the model that is sent.
    assert "rank: 4" in (tmp_path / "out/sft/README.md").read_text()


def test_a_run_that_is_not_complete_is_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    locked = read_yaml(Path("dvc.lock"))
    del locked["stages"]["dpo"]
    YAML().dump(locked, Path("dvc.lock"))
    assert cli.main(["publish", "--force", "whatever"]) == 2
    assert "dvc.lock: has no dpo; `dvc repro` runs what is missing" in capsys.readouterr().err
    shutil.rmtree("models/sft")
    run(repository, "git", "checkout", "--quiet", "dvc.lock")
    assert cli.main(["publish", "--dry-run", "out"]) == 2
    assert "models/sft: not here; `dvc checkout`, `dvc pull` or `dvc repro` brings it" in capsys.readouterr().err
    assert not Path("out/sft").exists()


def test_force_without_a_reason_is_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["publish", "--force", " "]) == 2
    assert "--force needs a reason" in capsys.readouterr().err


# Sending.


def test_a_release_is_sent_once_and_is_there(repository: Path, fresh: Hub, emotune: Teller) -> None:
    code, told = emotune(repository, "publish", "--tag", "v1")
    assert code == 0, told
    assert {key: repo.private for key, repo in fresh.repositories.items()} == {
        ("models", "me/emotune-base"): True,
        ("models", "me/emotune-sft"): True,
        ("models", "me/emotune-dpo"): True,
        ("datasets", "me/emotune-prefs"): True,
    }
    assert set(fresh.files("models", "me/emotune-dpo", "v1")) == ADAPTER
    assert set(fresh.files("datasets", "me/emotune-prefs", "v1")) == PREFS
    sent = fresh.files("models", "me/emotune-sft")["adapter_model.safetensors"]
    assert sent == (repository / "models/sft/adapter_model.safetensors").read_bytes()

    fresh.log.clear()
    code, told = emotune(repository, "publish", "--tag", "v1")
    assert code == 0
    assert told.count("nothing to send") == 4
    assert fresh.sent() == []
    notes = list(records.read_jsonl(repository / ".work/published.jsonl"))
    assert [note["repo"] for note in notes] == [f"me/emotune-{name}" for name in ("base", "sft", "dpo", "prefs")]
    assert notes[2]["revision"] == fresh.repositories["models", "me/emotune-dpo"].tags["v1"]

    code, told = emotune(repository, "publish", "--check", "--tag", "v1")
    assert code == 0, told
    assert told.count("no differences") == 4

    for name in ("sft", "dpo"):
        code, told = emotune(repository, code=code_of(fresh.files("models", f"me/emotune-{name}")["README.md"]))
        assert code == 0, told
    code, told = emotune(repository, code=code_of(fresh.files("datasets", "me/emotune-prefs")["README.md"]))
    assert code == 0, told

    # It names the very base model that it was trained on, which no later release moves.
    base = fresh.repositories["models", "me/emotune-base"].tags["v1"]
    for name in ("sft", "dpo"):
        found = fresh.files("models", f"me/emotune-{name}", "v1")
        config = json.loads(found["adapter_config.json"])
        assert (config["base_model_name_or_path"], config["revision"]) == ("me/emotune-base", base)
        assert f'from_pretrained("me/emotune-base", revision="{base}"' in found["README.md"].decode()
        assert f'from_pretrained(model, "me/emotune-{name}", revision="v1")' in found["README.md"].decode()

    # Another card: only the cards are sent, and not under the name of that release.
    commit(repository)
    code, told = emotune(repository, "publish", "--check", "--tag", "v1")
    assert (code, told.count("no differences")) == (0, 4), told
    code, told = emotune(repository, "publish", "--tag", "v1")
    assert (code, "a release does not move" in told) == (2, True)
    fresh.log.clear()
    code, told = emotune(repository, "publish", "--tag", "v2")
    assert code == 0, told
    # An adapter names the commit that the base model's card made, too.
    assert (told.count(": 1 files, "), told.count(": 2 files, ")) == (2, 2)
    base = fresh.repositories["models", "me/emotune-base"].tags["v2"]
    found = fresh.files("models", "me/emotune-dpo", "v2")["adapter_config.json"]
    assert json.loads(found) == config | {"revision": base}
    code, told = emotune(repository, "publish", "--check")
    assert (code, told.count("no differences")) == (0, 4), told
    assert not [path for method, path in fresh.log if method == "PUT"]

    # A byte that changed there.
    tree = fresh.repositories["models", "me/emotune-sft"]
    own = tree.commits[tree.branches["main"]]
    card = fresh.contents[own["README.md"][0]].replace(b"rank: 4", b"rank: 8")
    others = {"history.csv": b"step\n", "README.md": card, "more.bin": b"more"}
    tree.commit("main", own | {name: (fresh.keep(content), False) for name, content in others.items()})
    code, told = emotune(repository, "publish", "--check")
    assert code == 1
    assert "sft: more.bin is there, and not of this run" in told
    assert "sft: history.csv is another there" in told
    assert "sft: README.md is another there" in told
    assert told.count("no differences") == 3


def test_what_was_sent_is_a_version_in_mlflow_s_registry_and_link_finds_it_by_the_hub_s_tag(
    repository: Path, fresh: Hub, emotune: Teller
) -> None:
    from mlflow import MlflowClient

    from emotune.runs import mirror, tracking

    tracked = {"EMOTUNE_TRACKING": "on", "MLFLOW_TRACKING_URI": f"sqlite:///{repository}/.work/mlflow.db"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracked["MLFLOW_TRACKING_URI"])
        with tracking.store() as (client, experiment):
            tags = {tracking.LOCK: mirror.locks(mirror.entries(None))["dpo"]}
            dpo = client.create_run(experiment, tags=tags).info.run_id
    known = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    try:
        for tag in ("v1", "v1", "v2"):
            if tag == "v2":
                commit(repository)
            code, told = emotune(repository, "publish", "--tag", tag, environment=tracked)
            assert code == 0, told
            assert f"version {tag[1]} of emotune-dpo in MLflow, published\n" in told
        (repository / ".work/published.jsonl").unlink()
        code, told = emotune(repository, "link", "me/emotune-dpo@v1")
    finally:
        emotune(repository, code="", environment={"EMOTUNE_TRACKING": "off"})
    revision = fresh.repositories["models", "me/emotune-dpo"].tags["v1"]
    assert (code, f"published   me/emotune-dpo@{revision}  of commit {known}" in told) == (0, True), told
    assert f"git commit  {known}  its dvc.lock says this" in told

    client = MlflowClient(tracked["MLFLOW_TRACKING_URI"])
    first = client.get_model_version("emotune-dpo", "1")
    assert first.source == f"https://huggingface.co/me/emotune-dpo/tree/{revision}"
    assert (first.run_id, first.tags["release"], first.tags["git.commit"]) == (dpo, "v1", known)
    assert client.get_model_version_by_alias("emotune-dpo", "published").version == 2


@pytest.mark.parametrize("store", ["./mlruns", "postgresql+nodriver://me:s3cret@127.0.0.1:9/runs"])
def test_a_store_without_a_registry_is_no_error(store: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOTUNE_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    told = registry.register("dpo", "a" * 40, facts_of(repository, repository / "metrics", None))
    assert told.startswith("not registered in MLflow: ")
    assert "s3cret" not in told


def test_two_that_send_at_once_lose_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    notes = tmp_path / "published.jsonl"
    lines = [{"repo": f"me/{number}", "revision": "a", "commit": "b"} for number in range(48)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda line: release.note(notes, line), [*lines, *lines]))
    assert sorted(records.read_jsonl(notes), key=str) == sorted(lines, key=str)


def test_dvc_brings_an_artifact_that_a_git_tag_releases(repository: Path, tmp_path: Path) -> None:
    project = read_yaml(ROOT / "dvc.yaml")
    assert {out["path"] for out in project["artifacts"].values()} < {
        path for stage in project["stages"].values() for path in stage["outs"]
    }
    own = read_yaml(Path("dvc.yaml"))
    own["artifacts"] = {key: project["artifacts"][key] for key in ("sft", "dpo", "prefs")}
    YAML().dump(own, Path("dvc.yaml"))
    commit(repository)
    name_of_tester = ("-c", "user.name=A tester", "-c", "user.email=tester@localhost")
    run(repository, "git", *name_of_tester, "tag", "--annotate", "--message", "A release", "sft@v1.0.0")
    path = repository / project["artifacts"]["sft"]["path"]
    run(tmp_path, "dvc", "artifacts", "get", str(repository), "sft", "--out", str(tmp_path / "brought"))
    assert contents(tmp_path / "brought") == contents(path)


def code_of(card: bytes) -> str:
    found = re.search(r"```python\n(.*?)```", card.decode(), flags=re.DOTALL)
    assert found
    return found[1]


def test_a_repository_of_several_branches_holds_a_part_in_each(repository: Path, fresh: Hub, emotune: Teller) -> None:
    write_params(repository, CHANGES | {"publish.sft": "emotune-dpo@sft", "publish.owner": "a-team"})
    commit(repository)
    code, told = emotune(repository, "publish", "--tag", "v1")
    assert code == 0, told
    own = fresh.repositories["models", "a-team/emotune-dpo"]
    assert set(own.tags) == {"v1", "sft-v1"}
    for revision in ("main", "sft"):
        card = fresh.files("models", "a-team/emotune-dpo", revision)["README.md"].decode()
        assert ('"a-team/emotune-dpo", revision="sft-v1"' in card) is (revision == "sft")
    assert set(fresh.files("models", "a-team/emotune-dpo", "sft")) == ADAPTER


def test_what_is_public_there_is_not_written_to_without_saying_so(dry: Path, fresh: Hub, emotune: Teller) -> None:
    code, told = emotune(dry, code=pushing(dry, public=True))
    assert code == 0, told
    assert fresh.repositories["models", "me/part"].private is False
    code, told = emotune(dry, code=pushing(dry))
    assert "me/part is public; --public says that this is meant" in told


def pushing(dry: Path, public: bool = False, tag: str | None = None) -> str:
    """Code that sends the sft adapter to me/part."""
    return (
        "from pathlib import Path\n"
        "from emotune.publish import hub\n"
        f"folder = Path({str(dry / 'sft')!r})\n"
        "there = hub.Repository('me/part', 'main', 'model')\n"
        f"hub.push(hub.plan(there, folder, {tag!r}, {public}), 'a message')\n"
    )


# What goes wrong there.


@pytest.mark.parametrize(
    ("status", "where", "told"),
    [
        (401, "/api/whoami-v2", "401: the Hub does not accept the token: set HF_TOKEN"),
        (403, "/api/repos/create", "403: the token may not do that: give it write access"),
        (409, "/api/repos/create", "409: it stands in the way of something that is there already"),
        (429, "/api/repos/create", "429: too many requests; wait, and start it again"),
        (412, "/api/models/me/part/commit/main", "412: somebody else has changed it meanwhile"),
        (500, "/api/models/me/part/commit/main", "500: the Hub failed; start it again"),
    ],
)
def test_what_the_hub_refuses_is_one_message(
    status: int, where: str, told: str, made: Path, dry: Path, fresh: Hub, emotune: Teller
) -> None:
    def fault(method: str, path: str) -> None:
        if path == where:
            # A server, or a proxy before it, that says what it was given.
            raise Refused(status, f"I was given {TOKEN}", **{"Retry-After": "7"})

    fresh.fault = fault
    # All that is published asks first whose the token is; one part is enough for what is asked later.
    of_all = "whoami" in where
    code, found = emotune(made, "publish", **({} if of_all else {"code": pushing(dry)}))
    assert code == (2 if of_all else 70), found
    begins = "emotune: " if of_all else "emotune.core.errors.InputError: "
    (line,) = [line for line in found.splitlines() if line.startswith(begins)]
    assert f": {told}" in line
    assert "(it asks to wait 7 s)" in line
    assert TOKEN not in found


def test_without_a_token_nothing_is_asked(made: Path, fresh: Hub, emotune: Teller) -> None:
    code, told = emotune(made, "publish", environment={"HF_TOKEN": ""})
    assert code == 2
    assert "no token: set HF_TOKEN, or log in by `hf auth login`" in told
    assert fresh.log == []


def test_the_hub_s_own_login_is_a_token_too(made: Path, fresh: Hub, emotune: Teller) -> None:
    (emotune.home / "token").write_text(TOKEN)
    code, told = emotune(
        made, environment={"HF_TOKEN": ""}, code="from emotune.publish import hub\nprint(hub.account())"
    )
    (emotune.home / "token").unlink()
    assert (code, told) == (0, "me\n")


def test_a_mirror_of_the_hub_that_asks_for_a_password_is_shown_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://me:s3cret@host")
    with pytest.raises(InputError) as error, hub._one_message("who"):
        raise ValueError("Invalid port: 's3cret@host'")
    assert str(error.value) == "http://host: who: Invalid port: '***@host'"


def test_a_connection_that_drops_once_is_made_again(dry: Path, fresh: Hub, emotune: Teller) -> None:
    dropped: list[str] = []

    def fault(method: str, path: str) -> None:
        if method == "PUT" and not dropped:
            dropped.append(path)
            raise ConnectionResetError

    fresh.fault = fault
    code, told = emotune(dry, code=pushing(dry))
    assert code == 0, told
    assert len(dropped) == 1
    assert set(fresh.files("models", "me/part")) == ADAPTER


def test_killed_while_sending_it_goes_on_with_the_rest(dry: Path, fresh: Hub, tmp_path: Path, emotune: Teller) -> None:
    """The process is killed as it commits: what is large is there already, and is not sent again."""
    sent: list[str] = []

    def fault(method: str, path: str) -> None:
        if "/commit/" in path:
            sent.append(path)
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise ConnectionResetError

    fresh.fault = fault
    process = subprocess.Popen([sys.executable, "-c", pushing(dry)], env=environment(fresh, tmp_path))
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert len(sent) == 1
    assert set(fresh.files("models", "me/part")) == set()

    fresh.fault = lambda method, path: None
    fresh.log.clear()
    code, told = emotune(dry, code=pushing(dry, tag="v1"))
    assert code == 0, told
    assert set(fresh.files("models", "me/part", "v1")) == ADAPTER
    assert not [path for method, path in fresh.log if method == "PUT"]


def test_the_token_is_in_nothing_that_is_written(repository: Path, fresh: Hub, emotune: Teller, tmp_path: Path) -> None:
    code, told = emotune(repository, "publish", "--tag", "v1")
    assert code == 0, told
    assert emotune(repository, "publish", "--dry-run", str(tmp_path / "dry"))[0] == 0
    places = [repository, tmp_path, emotune.home]
    written = [path for place in places for path in place.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(written) > 50
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    assert [name for name, content in fresh.contents.items() if TOKEN.encode() in content] == []
    assert TOKEN not in told


# Merged weights.


def test_merged_weights_are_bfloat16_and_as_near_to_the_truth_as_bfloat16_is(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from emotune.models import loading

    assert cli.main(["publish", "--merged", "--dry-run", str(tmp_path / "out")]) == 0
    assert re.search(r"merged: [1-7] of 7 greedy replies equal", capsys.readouterr().out)
    assert files(tmp_path / "out/merged") == BASE | {"history.csv"}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out/merged", dtype="auto")
    assert {weight.dtype for weight in merged.parameters()} == {torch.bfloat16}

    whole = parse(Path("params.yaml"))
    rounded = whole.model.model_copy(update={"dtype": "bfloat16"})
    truth = loading.load_tuned(Path("models/base"), whole.model, Path("models/dpo"))
    unmerged = loading.load_tuned(Path("models/base"), rounded, Path("models/dpo"))
    tokenizer = loading.load_tokenizer(Path("models/dpo"), None)
    prompts = example.prompts(whole, tokenizer)
    assert len(prompts) == len(LABELS)

    def furthest(model: Any, prompt: str) -> float:
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            return (model(ids).logits.float() - truth(ids).logits).abs().max().item()

    # Rounding the sum costs no more than rounding what is summed, give or take its luck; the tags of an adapter are not
    # rounded, those in the sum are.
    assert max(furthest(merged, prompt) for prompt in prompts) < 3 * max(furthest(unmerged, p) for p in prompts)


def test_replies_part_by_so_many_steps_of_bfloat16() -> None:
    import torch

    logits = [torch.tensor([1.0, 0.0]), torch.tensor([10.0, 9.5])]
    reply = example.Reply([0, 0], logits)
    assert example.parting(reply, example.Reply([0, 0], [])) == 0.0
    # Between 8 and 16, bfloat16 has a value every 1/16.
    assert example.parting(reply, example.Reply([0, 1], [])) == 8.0
    # Between 1 and 2, every 1/128.
    assert example.parting(reply, example.Reply([1, 0], [])) == 128.0


def test_a_base_model_under_another_licence_is_not_merged(made: Path) -> None:
    whole = parse(made / "params.yaml")
    places: Sequence[str] = ("base", "sft", "dpo", "merged", "prefs")
    facts = Facts(
        root=made,
        metrics=made / "metrics",
        p=whole,
        lock={},
        lock_sha256="",
        commit="",
        dirty=False,
        repositories={name: hub.Repository(f"me/{name}", "main", "model") for name in places},
        licenses=Licenses(data="cc-by-nc-sa-4.0", own="cc-by-nc-sa-4.0", base="llama2"),
        objections=[],
        reason=None,
    )
    with pytest.raises(InputError, match=r"--merged: the base model is under llama2"):
        parts.names(facts, merged=True)
    assert "merged" not in parts.names(facts, merged=False)


def test_two_parts_do_not_share_a_place(tmp_path: Path) -> None:
    write_params(tmp_path, {"publish.sft": "emotune-dpo"})
    with pytest.raises(InputError, match=r"publish.base, sft, dpo, merged and prefs must be 5"):
        parse(tmp_path / "params.yaml")
