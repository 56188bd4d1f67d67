"""Laws of the page of `emotune report --html`, on a small run, by its text and in a real browser."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_report import LABELS, write_lock, write_metrics

from conftest import voted
from emotune.core import records
from emotune.faces import charts, cli

PROJECT = Path(__file__).parents[2]
SECTIONS = [
    "models",
    "confusion",
    "control",
    "training",
    "replies",
    "preferences",
    "judges",
    "data",
    "cost",
    "provenance",
]
EVIL = "<script>document.title='taken'</script></style>&amp;"
SFT = "step,loss,eval_loss\n1,2.5,\n10,nan,\n20,1.25,1.5\n"
DPO = "step,loss,rewards/margins,eval_rewards/margins\n1,0.69,0.0,\n4,0.5,0.25,0.75\n"


def control(model: str) -> list[dict[str, object]]:
    """21 contexts asked for in every emotion; only dpo gets the first emotion right."""
    return [
        {
            "id": f"d{n}/1/{emotion}",
            "emotion": emotion,
            "context": ["Hello.", f"Turn number {n}.", EVIL if n == 0 else "W" * 200],
            "reply": f"{model} says {emotion} {n} {EVIL}",
            "judged": "neutral" if model == "dpo" else "anger",
            "gibberish": "clean" if n else "word salad",
        }
        for n in range(21)
        for emotion in LABELS
    ]


def pair(gap: float) -> dict[str, object]:
    turn = {"role": "user", "content": EVIL, "emotion": "fear"}
    verdict = {f"{which}_{what}": "fear" for which in ("chosen", "rejected") for what in ("judged", "gibberish")}
    scores = {"chosen_score": 9.0, "rejected_score": 9.0 - gap}
    return {"history": [turn], "emotion": "fear", "chosen": EVIL, "rejected": ""} | verdict | scores


def git(*arguments: str) -> str:
    own = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *own, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A folder that looks like the repository after a run: look, do not touch."""
    folder = tmp_path_factory.mktemp("repository")
    write_metrics(folder / "metrics")
    (folder / "metrics/sft_history.csv").write_text(SFT)
    (folder / "metrics/dpo_history.csv").write_text(DPO)
    (folder / "metrics/reward_model_history.csv").write_text("step,accuracy,eval_accuracy\n1,0.5,\n8,,0.875\n")
    split = {"dialogues": 1234, "turns": 9, "labels": {"fear": 9}}
    records.write_metrics(folder / "metrics/prepare.json", {"train": split, "test": split})
    for model in ("baseline", "sft", "dpo"):
        records.write_jsonl(folder / f"data/replies/{model}.control.jsonl", control(model))
    records.write_jsonl(folder / "data/prefs/train.jsonl", [pair(2.0), pair(2.1)])
    records.write_jsonl(folder / "data/prefs/validation.jsonl", [pair(5.0)])
    spent = {"stage": "sft", "seconds": 61.5, "peak_memory_bytes": 1_250_000_000, "tokens_per_second": None}
    records.write_jsonl(folder / ".work/costs.jsonl", [spent | {"failed": None}])
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(PROJECT / name, folder)
    md5 = hashlib.md5((folder / "metrics/evaluate.json").read_bytes()).hexdigest()
    (folder / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  evaluate:\n    cmd: python\n    params:\n      params.yaml:\n"
        "        sft.epochs: 77\n        data: {source: embedded}\n    outs:\n"
        f"    - {{path: metrics/evaluate.json, hash: md5, md5: {md5}, size: 2500000}}\n"
    )
    return folder


@pytest.fixture
def here(repository, tmp_path, monkeypatch):
    """A copy of it, to change, as the working directory."""
    shutil.copytree(repository, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path / "run"


@pytest.fixture(scope="module")
def report(repository, tmp_path_factory):
    """The file of its page: look, do not touch."""
    file = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        patch.delenv("DVC_ROOT", raising=False)
        assert cli.main(["report", "--html", str(file)]) == 0
    return file


@pytest.fixture
def html(report):
    return report.read_text("utf-8")


def written(*options: str) -> str:
    assert cli.main(["report", "--html", "report.html", *options]) == 0
    return Path("report.html").read_text("utf-8")


def section(html: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', html, re.DOTALL)
    assert found, name
    return found[0]


def cells(html: str, head: str) -> list[str]:
    """The text of the cells in the first row of this head."""
    row = re.search(rf'<tr><th scope="row">{head}.*?</tr>', html, re.DOTALL)
    assert row, head
    return [re.sub(r"<[^>]*>", " ", cell).split() for cell in re.findall(r"<td.*?</td>", row[0], re.DOTALL)]


def test_the_models_stand_side_by_side_with_their_intervals_and_tests(repository, html):
    html = section(html, "models")
    evaluated = records.read_metrics(repository / "metrics/evaluate.json")
    found = evaluated["dpo"]["replies"]["accuracy"]
    assert cells(html, "accuracy")[3] == [f"{found['value']:.3f}", f"{found['low']:.3f}–{found['high']:.3f}"]
    test = evaluated["paired"]["sft_to_dpo"]["control"]["macro_accuracy"]
    assert test["difference"] > 0
    changed = section(html, "models").split("What each step changed")[1]
    assert cells(changed, "control")[1] == [
        f"{test['difference']:+.3f}",
        f"[{test['low']:+.3f},",
        f"{test['high']:+.3f}]",
        "p",
        f"{test['p']:.3f}",
    ]


def test_the_human_replies_stand_beside_the_models_where_the_questions_are_the_humans_own(html):
    assert '<b class="human">human</b>' in section(html, "confusion")
    assert '<th scope="col" class="human">human</th>' in section(html, "models")
    assert '<b class="human">' not in section(html, "control")


def test_a_confusion_row_is_shares_of_what_was_asked_for(here):
    found = records.read_metrics(Path("metrics/evaluate.json"))
    found["baseline"]["replies"]["confusion"][1] = [3, 1, 0, 0, 0, 0, 0]
    records.write_metrics(Path("metrics/evaluate.json"), found)
    rows = cells(section(written(), "confusion"), "anger")
    assert rows == [["75"], ["25"], ["0"], ["0"], ["0"], ["0"], ["0"]]


def test_control_shows_each_emotion_of_each_model(here):
    found = records.read_metrics(Path("metrics/evaluate.json"))
    for model, share in (("baseline", 0.125), ("sft", 0.5), ("dpo", 1.0)):
        found[model]["control"]["per_emotion"]["fear"] = share
    records.write_metrics(Path("metrics/evaluate.json"), found)
    # The last is the human's, of replies that people gave in fear.
    heard = round(100 * found["human"]["replies"]["per_emotion"]["fear"])
    assert cells(section(written(), "control"), "fear") == [["12"], ["50"], ["100"], [f"{heard}"]]
    # Runs from before that was measured have no such column.
    del found["human"]["replies"]["per_emotion"]
    records.write_metrics(Path("metrics/evaluate.json"), found)
    assert cells(section(written(), "control"), "fear") == [["12"], ["50"], ["100"]]


def test_curves_are_drawn_of_what_the_histories_hold(html):
    html = section(html, "training")
    # What is not a number breaks no drawing: it is left out of the curve, and stands in the table.
    assert (
        'aria-label="sft loss: train 2.5 at step 1, 1.25 at step 20; validation 1.5 at step 20, 1.5 at step 20"' in html
    )
    assert "train 0 at step 1, 0.25 at step 4; validation 0.75 at step 4" in html
    assert "log-probability of chosen" not in html
    assert "reward_model accuracy of the pairs: train 0.5 at step 1, 0.5 at step 1; validation 0.875 at" in html
    assert cells(html, "10") == [["nan"], []]


def test_the_judges_gap_stands_below_their_curves(here):
    Path("metrics/dpo_history.csv").write_text(
        "step,loss,control_reward_judge,control_evaluate_judge\n0,,0.25,0.25\n1,0.5,,\n4,0.25,0.75,0.5\n"
    )
    assert "by the rewarding judge than" not in section(written(), "training")
    gap = {"judge_gap": {"value": 0.25, "low": -0.125, "high": 0.5}}
    records.write_metrics(Path("metrics/dpo.json"), gap)
    html = section(written(), "training")
    assert "dpo control: rewarding judge 0.25 at step 0, 0.75 at step 4; evaluating judge 0.25" in html
    assert "rose by +0.250 [-0.125, +0.500] more by the rewarding judge than by the evaluating" in html


def test_a_history_that_holds_no_numbers_is_refused_with_its_line(here, capsys):
    Path("metrics/dpo_history.csv").write_text("step,loss\n1,0.5\n2,low\n")
    assert cli.main(["report", "--html", "report.html"]) == 2
    assert "metrics/dpo_history.csv:3: expected numbers, found ['2', 'low']" in capsys.readouterr().err


def test_the_first_twenty_contexts_show_what_each_model_replied_in_each_emotion(html):
    html = section(html, "replies")
    assert "The first 20 of 21 contexts" in html
    assert html.count("<details") == 20
    for model in ("baseline", "sft", "dpo"):
        for emotion in LABELS:
            assert html.count(f"{model} says {emotion} 19 ") == 1
    assert "says fear 20 " not in html
    # dpo is always judged neutral, the others anger: each meets one emotion of seven.
    assert html.count("✓ neutral") == html.count("✓ anger") / 2 == 20
    assert html.count("baseline 1 · sft 1 · dpo 1 of 7") == 20
    # Only in the first context are replies no clean text.
    assert html.count("word salad") == 3 * len(LABELS)


def test_a_base_model_that_was_told_emotions_stands_beside_the_models_and_what_it_is_worth_in_words(here):
    assert "zero-shot" not in section(written(), "models")
    write_metrics(Path("metrics"), {"zero-shot": 0.02, "few-shot": 0.2})
    for way in ("zero-shot", "few-shot"):
        records.write_jsonl(Path(f"data/replies/prompted/{way}.control.jsonl"), control(way))
    page = written()
    assert "<b>Prompting is not enough here: sft is better in control than few-shot: +0." in page
    assert '<th scope="col" class="few-shot">few-shot</th>' in section(page, "models")
    assert '<b class="zero-shot">zero-shot</b>' in section(page, "confusion")
    assert len(cells(section(page, "control"), "fear")) == 6
    assert section(page, "replies").count("few-shot says fear 19 ") == 1


def test_pairs_stand_beside_the_published_ones(html):
    html = section(html, "preferences")
    assert cells(html, "median<") == [["7.250"], ["17.547"]]
    assert cells(html, "mean")[1] == ["16.144"]
    assert cells(html, "sd")[1] == ["5.815"]
    assert re.findall(r"<title>(.*?)</title>", html)[0] == "2 to 2.2: 2"


def test_what_other_thresholds_would_give_is_a_table_and_two_curves(here):
    path = Path("metrics/prefs.json")
    assert "other thresholds" not in section(written(), "preferences")
    as_set = {"min_chosen_score": 8.0, "target_score_range": 4.0, "attempts": 30, "pairs": {"happiness": 1}}
    lower = as_set | {"min_chosen_score": 6.5, "pairs": {"happiness": 2}}
    fewer = as_set | {"attempts": 6, "pairs": {"happiness": 0}}
    records.write_metrics(path, records.read_metrics(path) | {"what_if": [as_set, lower, fewer]})
    html = section(written(), "preferences")
    assert "all 1 at score 6.5, 0.5 at score 8; happiness 1 at score 6.5, 0.5 at score 8" in html
    assert "<td>6.5</td><td>4</td><td>30</td><td>2</td><td>100%</td><td>100%</td>" in html
    assert "<td>8</td><td>4</td><td>6</td><td>0</td><td>0%</td><td>0%</td>" in html


def test_a_stage_s_cost_is_what_it_did_wrote_and_took(html):
    html = section(html, "cost")
    assert cells(html, "prepare") == [["2,468", "dialogues"], *[["–"]] * 4]
    assert cells(html, "sft") == [["–"], ["–"], ["61.5"], ["1.25"], ["–"]]
    assert cells(html, "evaluate") == [["280", "replies"], ["2.50"], *[["–"]] * 3]


def test_the_page_says_which_commit_and_which_files_it_is_of(here):
    assert "no git repository here" in section(written(), "provenance")
    git("init", "-q")
    git("add", "-A", ":!report.html", ":!.work")
    git("commit", "-qm", "a run")
    html = section(written(), "provenance")
    assert git("rev-parse", "HEAD") in html
    assert cells(html, "changes to tracked files") == [["none"]]
    assert cells(html, "files shown") == [["1", "are", "those", "of", "dvc.lock"]]
    assert cells(html, "sft.epochs")[0][0] == "77"
    assert "params.yaml now says" in html
    with Path("metrics/evaluate.json").open("a") as file:
        file.write("\n")
    html = section(written(), "provenance")
    assert cells(html, "changes to tracked files") == [["1:", "metrics/evaluate.json"]]
    assert "differ: metrics/evaluate.json" in " ".join(cells(html, "files shown")[0])


@pytest.mark.parametrize(
    ("file", "sections"),
    [
        ("metrics/evaluate.json", ["models", "confusion", "control"]),
        ("metrics/prefs.json", ["preferences"]),
        ("metrics/judges.json", ["judges"]),
        ("metrics/prepare.json", ["data"]),
        ("metrics/dpo_history.csv", ["training"]),
        ("data/replies/sft.control.jsonl", ["replies"]),
        ("data/prefs/train.jsonl", ["preferences"]),
        (".work/costs.jsonl", ["cost"]),
        ("dvc.lock", []),
    ],
)
def test_a_section_whose_input_is_absent_says_so_and_no_other_does(here, file, sections):
    Path(file).unlink()
    html = written()
    assert [name for name in SECTIONS if "Nothing to show here" in section(html, name)] == sections


def test_a_run_that_was_kept_has_a_page_without_replies(here):
    shutil.copytree("metrics", "metrics/real/elsewhere")
    shutil.copy("dvc.lock", "metrics/real/elsewhere/lock.yaml")
    Path("metrics/evaluate.json").unlink()
    html = written("--run", "elsewhere")
    assert "the replies of this run were not kept" in section(html, "replies")
    assert cells(section(html, "provenance"), "files shown")[0][:2] == ["1", "are"]
    assert "<b>metrics/real/elsewhere</b>" in html


def test_sections_of_another_run_are_marked_by_their_stage(here):
    write_lock(here)
    assert "<b>Stale</b>" not in written()
    records.write_metrics(Path("metrics/prefs.json"), records.read_metrics(Path("metrics/prefs.json")) | {"pairs": 2})
    html = written()
    marked = [name for name in SECTIONS if "<b>Stale</b>" in section(html, name)]
    assert marked == ["models", "confusion", "control", "training", "replies", "preferences"]
    assert "what is here of generate_prefs (metrics/prefs.json is not that of dvc.lock)" in section(html, "preferences")


def test_equal_inputs_make_equal_bytes(here, html):
    assert written() == html


def test_the_page_asks_for_nothing_and_what_models_say_is_text(html):
    assert "<script" not in html
    assert html.count("</style>") == 1
    assert "&lt;script&gt;document.title=&#39;taken&#39;&lt;/script&gt;&lt;/style&gt;&amp;amp;" in html
    assert not re.findall(r"""https?:|\bsrc=|url\(|@import|href="(?!#|data:,)""", html)


def test_a_page_that_cannot_be_written_leaves_the_one_before(here):
    before = written()
    with Path("data/replies/dpo.control.jsonl").open("a") as file:
        file.write("{")
    assert cli.main(["report", "--html", "report.html"]) == 2
    assert Path("report.html").read_text("utf-8") == before
    assert [path.name for path in Path().glob(".report*")] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--html", "params.yaml"], "--html params.yaml: a page is a file whose name ends in .html"),
        (["--run", "tiny"], "--run says whose page is written, so it needs --html FILE"),
        (
            ["--html", "a.html", "--readme", "README.md"],
            "--html writes a page, and --readme and --check are for tables",
        ),
        (["--html", "a.html", "--check"], "--html writes a page, and --readme and --check are for tables"),
        (["--html", "a.html", "--run", "tiny"], "--run tiny: no such run; there are none in metrics/real"),
    ],
)
def test_options_that_make_no_page_are_refused(here, capsys, options, message):
    before = Path("params.yaml").read_bytes()
    assert cli.main(["report", *options]) == 2
    assert message in capsys.readouterr().err
    assert Path("params.yaml").read_bytes() == before
    assert not Path("a.html").exists()


def test_people_s_votes_stand_beside_the_judges_where_there_are_any(here):
    assert "<h3>People</h3>" not in written()
    records.write_metrics(Path("metrics/votes.json"), voted())
    judges = section(written(), "judges")
    assert "votes 10, voters 2, questions 6" in judges
    assert cells(judges, "dpo to sft") == [["10"], ["0.750", "[0.400,", "0.900]"], ["6"], ["2"], ["1"], ["1"]]
    assert cells(judges, "evaluating judge")[1:] == [["7"], ["1"]]


def test_before_the_pipeline_ran_there_is_no_page(here, capsys):
    shutil.rmtree("metrics")
    assert cli.main(["report", "--html", "report.html"]) == 2
    assert "metrics holds no metrics; `make repro` writes them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.13, 0.48, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (1, 765, [0, 200, 400, 600, 800]),
        (-0.05, 0.0, [-0.05, -0.04, -0.03, -0.02, -0.01, 0.0]),
        (3, 3, [2.4, 2.6, 2.8, 3.0, 3.2, 3.4, 3.6]),
    ],
)
def test_ticks_are_round_numbers_around_the_values(low, high, expected):
    assert charts.ticks(low, high) == expected


# Contrast as WCAG 2 counts it, of each element that holds text, against the nearest background that is painted.
CONTRAST = """() => {
  const rgb = css => {
    const n = css.match(/[\\d.]+/g).map(Number);
    return css.startsWith('color(') ? [...n.slice(0, 3).map(v => v * 255), n[3] ?? 1] : [...n.slice(0, 3), n[3] ?? 1];
  };
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    const painted = rgb(getComputedStyle(e).backgroundColor);
    return painted[3] ? painted : behind(e.parentElement);
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || e.tagName === 'title') continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(rgb(e.closest('svg') ? style.fill : style.color)), light(behind(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), e.textContent.slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_all_text_can_be_read(report, page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri())
    found = page.evaluate(CONTRAST)
    assert len(found) > 500
    assert [text for contrast, text in found if contrast < 4.5] == []


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_no_section_is_wider_than_the_screen(report, page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    beyond = """width => [...document.querySelectorAll('main *')].filter(
        e => !e.closest('.scroll') && e.getBoundingClientRect().right > width).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(beyond, width) == []
    assert [one.get_attribute("id") for one in page.locator("section").all() if one.is_visible()] == SECTIONS
    assert page.locator("script").count() == 0
    assert page.title() == "emotune · embedded"
    assert page.get_by_text(f"dpo says fear 0 {EVIL}", exact=True).is_visible()
