"""Laws of `emotune profile`, of `journal` and of the command line, on copies of the project's own params.yaml."""

import json
import os
import pty
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from conftest import LABELS, run_stage
from emotune.core import records
from emotune.core.dialogue import SPLITS
from emotune.core.errors import InputError
from emotune.faces import cli
from emotune.faces.profiles import pinned_model, read_profile
from emotune.models import pins
from emotune.preferences import journal
from emotune.runs.params import parse

PROJECT = Path(__file__).parents[2]
TINY = PROJECT / "../shared/models/tiny1m"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """A folder that looks like the repository to the command line."""
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    shutil.copytree(PROJECT / "profiles", tmp_path / "profiles")
    (tmp_path / "dialogues").mkdir()
    for split in SPLITS:
        row = {"turns": [{"content": f"Hi {split}", "emotion": emotion} for emotion in LABELS]}
        (tmp_path / "dialogues" / f"{split}.jsonl").write_text(json.dumps(row))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def profile(name: str, text: str) -> None:
    Path("profiles", f"{name}.yaml").write_text(text)


def test_a_profile_changes_its_keys_and_no_other_byte(capsys):
    before = Path("params.yaml").read_text().splitlines()
    found = parse(Path("params.yaml"))
    profile("mine", "sft:\n  lora:\n    rank: 3\nreward:\n  weights: [0.5, 0.2, 0.3]\n")
    assert cli.main(["profile", "mine"]) == 0
    after = Path("params.yaml").read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [new for _, new in changed] == ["    rank: 3", "  weights: [0.5, 0.2, 0.3]"]
    assert after[-1] == "  weights: [0.5, 0.2, 0.3]"
    assert capsys.readouterr().out.splitlines() == [
        f"sft.lora.rank: {found.sft.lora.rank} -> 3",
        f"reward.weights: {list(found.reward.weights)} -> [0.5, 0.2, 0.3]",
    ]


def test_a_profile_applied_twice_changes_nothing_the_second_time(capsys):
    profile("mine", "dpo:\n  learning_rate: 0.00003\n")
    cli.main(["profile", "mine"])
    once = Path("params.yaml").read_bytes()
    capsys.readouterr()
    cli.main(["profile", "mine"])
    assert Path("params.yaml").read_bytes() == once
    assert capsys.readouterr().out == "params.yaml says all of it already\n"


def test_lists_and_label_maps_stay_on_one_line_and_comments_below_them_stay():
    labels = "reward:\n  gibberish_judge:\n    labels:\n      LABEL_0: clean\n"
    profile("mine", labels + "sft:\n  lora:\n    target_modules:\n    - q_proj\n")
    cli.main(["profile", "mine"])
    text = Path("params.yaml").read_text()
    assert "    labels: {LABEL_0: clean}\n  # null | trained:" in text
    assert "    target_modules: [q_proj]\n\n# A learned reward:" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sft:\n  learning_rat: 0.1\n", "unknown key sft.learning_rat; the nearest is sft.learning_rate"),
        ("lora:\n  rank: 1\n", "unknown key lora; the nearest is"),
        ("sft:\n  lora:\n    rank: 0\n", "sft.lora.rank"),
        ("sft: 3\n", "sft"),
        ("- sft\n", "expected a mapping"),
    ],
)
def test_a_bad_profile_is_one_message_that_names_it_and_writes_nothing(text, message, capsys):
    before = Path("params.yaml").read_bytes()
    profile("bad", text)
    assert cli.main(["profile", "bad"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "profiles/bad.yaml" in error
    assert Path("params.yaml").read_bytes() == before


def test_an_unknown_profile_lists_those_there_are(capsys):
    assert cli.main(["profile", "llama"]) == 2
    assert "no profile 'llama'; there are daily-dialog-cpu, gemma-7b-12gb, " in capsys.readouterr().err


def test_a_damaged_params_yaml_is_not_blamed_on_the_profile(capsys):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(re.sub("(?m)^history_turns: .*", "history_turns: 0", text))
    assert cli.main(["profile", "daily-dialog-cpu", "--data", "dialogues"]) == 2
    assert capsys.readouterr().err.startswith("emotune: params.yaml: history_turns")


@pytest.mark.parametrize("name", sorted(path.stem for path in (PROJECT / "profiles").glob("*.yaml")))
def test_every_profile_makes_valid_params_and_pins_what_dvc_cannot_hash(name):
    if "folder" not in read_profile(PROJECT / "profiles", name).get("data", {}).values():
        assert cli.main(["profile", name]) == 0
        return
    assert cli.main(["profile", name, "--data", "dialogues"]) == 0
    found = parse(Path("params.yaml"))
    assert found.data.path == "dialogues"
    assert len(found.data.revision) == 64
    assert found.model.base in pins.OWN or len(found.model.revision) == 40


def test_a_profile_that_reads_a_folder_asks_for_it(capsys):
    assert cli.main(["profile", "daily-dialog-cpu"]) == 2
    assert "data.path must be set where" in capsys.readouterr().err


def test_ones_own_dialogues_are_read_as_the_readme_says(capsys):
    section = (PROJECT / "README.md").read_text("utf-8").split("## Your own dialogues\n")[1].split("\n## ")[0]
    [row] = re.findall(r"^```json\n(.*)\n```$", section, flags=re.MULTILINE)
    [command] = re.findall(r"^(emotune profile --data \S+) ", section, flags=re.MULTILINE)
    folder = Path(command.split()[-1])
    folder.mkdir()
    for split in SPLITS:
        (folder / f"{split}.jsonl").write_text(
            row.replace('"a1"', f'"{split}"').replace("I got", f"In {split} I got") + "\n"
        )
    emotions = set(re.findall(r'"emotion": "(\w+)"', row))
    assert cli.main(command.split()[1:]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: JSONL; dialogues: train 1, validation 1, test 1; turns: ")
    data = parse(Path("params.yaml")).data
    assert (data.source, data.path, set(data.labels), data.neutral) == ("jsonl", str(folder), emotions, "neutral")
    run_stage("prepare", Path.cwd())
    assert records.read_metrics(Path("metrics/prepare.json"))["test"]["dialogues"] == 1


def test_data_is_recognised_whatever_the_source_was(capsys):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("  source: embedded\n", "  source: jsonl\n"))
    assert cli.main(["profile", "--data", "dialogues"]) == 0
    assert "data.labels" not in capsys.readouterr().out
    daily = Path("daily")
    daily.mkdir()
    for split in SPLITS:
        (daily / f"dialogues_{split}.txt").write_text("Hi . __eou__ Oh . __eou__\n")
        (daily / f"dialogues_emotion_{split}.txt").write_text("0 6\n")
    assert cli.main(["profile", "--data", "daily"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("daily: DailyDialog; dialogues: train 1, validation 1, test 1; turns: neutral 3, ")
    assert said[1:3] == ['data.source: "jsonl" -> "folder"', 'data.path: "dialogues" -> "daily"']
    assert [line.split(":")[0] for line in said[3:]] == ["data.revision"]


def test_of_other_emotions_the_most_frequent_is_neutral_where_none_is_called_so(capsys):
    row = {"turns": [{"content": "Hi", "emotion": emotion} for emotion in ("joy", "calm", "calm")]}
    for split in SPLITS:
        Path("dialogues", f"{split}.jsonl").write_text(json.dumps(row))
    assert cli.main(["profile", "--data", "dialogues"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("so data.neutral is the most frequent: calm")
    data = parse(Path("params.yaml")).data
    assert (data.labels, data.neutral) == (("calm", "joy"), "calm")


def test_what_is_no_source_is_told_with_what_would_be_one(capsys):
    Path("downloads").mkdir()
    Path("downloads", "all.zip").write_bytes(b"not read")
    assert cli.main(["profile", "--data", "downloads"]) == 2
    error = capsys.readouterr().err
    assert "neither of the two sources; accepted: JSONL (train.jsonl, validation.jsonl, test.jsonl) or DailyD" in error
    assert error.endswith(
        "found none of these. Of several things in one folder a zip is named itself; here are all.zip\n"
    )


def test_data_that_is_not_there_is_refused(capsys):
    assert cli.main(["profile", "daily-dialog-cpu", "--data", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_a_hub_model_comes_with_its_commit_and_embedded_with_none():
    assert pinned_model(f"owner/model-7b@{COMMIT}") == {"base": "owner/model-7b", "revision": COMMIT}
    assert pinned_model("embedded") == {"base": "embedded", "revision": None}


@pytest.mark.parametrize("name", ["owner/model", "owner/model@main", f"model@{COMMIT}", "dialogues", "nowhere"])
def test_a_model_without_a_pin_is_refused(name):
    with pytest.raises(InputError, match="owner/model@commit"):
        pinned_model(name)


def test_a_local_model_is_pinned_by_its_content():
    if not TINY.is_dir():
        pytest.skip(f"{TINY} is not on this machine")
    from emotune.models import pins

    assert cli.main(["profile", "--model", str(TINY)]) == 0
    model = parse(Path("params.yaml")).model
    assert pins.resolve(model.base, model.revision)["revision"] == model.revision


def test_list_shows_each_profile_and_what_it_is_for(capsys):
    assert cli.main(["profile", "--list"]) == 0
    assert "llama2-7b-12gb       Llama 2 7B Chat, 4 bit" in capsys.readouterr().out


def test_help_and_profile_import_nothing_heavy():
    script = (
        "import sys; from emotune.faces import cli; cli.main(['profile', 'daily-dialog-cpu', '--data', 'dialogues'])\n"
        "heavy = {'torch', 'mlflow', 'trl', 'transformers', 'datasets', 'dvc', 'sklearn', 'pandas', 'numpy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "cli.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "profile" in done.stdout
    assert "report" in done.stdout
    assert "journal" in done.stdout


def test_prefs_says_what_other_thresholds_would_give_and_that_an_older_run_does_not(repository, capsys):
    assert cli.main(["prefs", "--what-if"]) == 2
    assert "prefs: metrics/prefs.json does not say what other thresholds would give" in capsys.readouterr().err
    (repository / "metrics").mkdir()
    of_votes = {"pairs": 2, "prompts": 2, "yield_total": 1.0, "attempts_total": 0, "gap": {"median": 1.5}}
    of_votes |= {"chosen_is_longer": 0.5, "votes": {"pairs": 2}}
    records.write_metrics(repository / "metrics/prefs.json", of_votes)
    assert cli.main(["prefs"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("longer one chosen  voted")
    assert cli.main(["prefs", "--what-if"]) == 2
    assert "none makes or unmakes a pair of people's" in capsys.readouterr().err
    row = {"min_chosen_score": 8.0, "target_score_range": 4.0, "attempts": 3, "pairs": {"fear": 1, "anger": 0}}
    looser = row | {"min_chosen_score": 6.5, "pairs": {"fear": 4, "anger": 1}}
    measured = {"prompts": 10, "prompts_per_emotion": {"fear": 5, "anger": 5}, "what_if": [row, looser]}
    records.write_metrics(repository / "metrics/prefs.json", measured)
    assert cli.main(["prefs", "--what-if"]) == 0
    assert capsys.readouterr().out == (
        "min_chosen_score  target_score_range  attempts  pairs  of all  anger  fear\n"
        "8                                  4         3      1     10%     0%   20%\n"
        "6.5                                4         3      5     50%    20%   80%\n"
    )


@pytest.fixture
def memo(repository):
    """A journal of two contexts, the second made an hour after the first and of learned scores."""
    path = repository.resolve() / ".work" / "journal.sqlite"
    for attempts, made_of in ((3, {"base": "b" * 64}), (4, {"base": "c" * 64, "reward_model": "d" * 64})):
        with journal.opened(path, made_of | {"sft": "a" * 64}, lambda _: None) as opened:
            opened.keep((f"{attempt // 2:064x}", attempt, "kept") for attempt in range(attempts))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE attempts SET created = 1700000000 + 3600 * (rowid > 3)")
    return path


def test_an_absent_and_an_emptied_journal_hold_no_attempts(repository, capsys):
    path = repository.resolve() / ".work" / "journal.sqlite"
    assert cli.main(["journal"]) == 0
    assert not path.parent.exists()
    with journal.opened(path, {}):
        pass
    assert cli.main(["journal"]) == 0
    assert capsys.readouterr().out == f"{path}: no attempts\n" * 2


def test_journal_shows_how_much_was_made_by_which_models_and_when(memo, monkeypatch, capsys):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert cli.main(["journal"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{memo}: 7 attempts, 0.0 MB",
        "",
        "of                      base           sft  attempts  prompts             first              last",
        "learned scores  cccccccccccc  aaaaaaaaaaaa         4        2  2023-11-14 23:13  2023-11-14 23:13",
        "candidates      bbbbbbbbbbbb  aaaaaaaaaaaa         3        2  2023-11-14 22:13  2023-11-14 22:13",
    ]


def test_clear_with_yes_empties_the_journal_and_says_how_many_went(memo, capsys):
    assert cli.main(["journal", "--clear", "--yes"]) == 0
    assert not memo.exists()
    assert cli.main(["journal", "--clear", "--yes"]) == 0
    assert capsys.readouterr().out == f"{memo}: 7 attempts deleted\n{memo}: 0 attempts deleted\n"


def test_clear_without_yes_is_refused_where_nobody_can_be_asked(memo):
    command = [sys.executable, "-m", "emotune.faces.cli", "journal", "--clear"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "emotune: journal: --clear asks on a terminal, and this is none: --clear --yes does not ask\n"
    )
    assert memo.exists()


@pytest.mark.parametrize(("answer", "code", "said"), [("", 1, "nothing deleted"), ("y", 0, "7 attempts deleted")])
def test_clear_without_yes_asks_on_a_terminal(memo, answer, code, said):
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    command = [sys.executable, "-m", "emotune.faces.cli", "journal", "--clear"]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True)
    os.close(ours)
    os.close(theirs)
    assert said in done.stdout
    assert done.returncode == code
    assert memo.exists() == (code == 1)


def test_yes_without_clear_is_refused(memo, capsys):
    assert cli.main(["journal", "--yes"]) == 2
    assert "--yes answers what --clear asks" in capsys.readouterr().err


def test_a_damaged_journal_is_one_message(memo, capsys):
    memo.write_bytes(b"no journal")
    assert cli.main(["journal"]) == 2
    assert "journal.sqlite is damaged" in capsys.readouterr().err


def test_a_reader_that_has_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "emotune.faces.cli", "profile", "--list"],
        cwd=PROJECT,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")
