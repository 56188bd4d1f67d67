"""The subcommands of emotune, which a user calls beside `make` and `dvc`; `emotune --help` lists them."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from emotune.core import processes, records
from emotune.core.errors import InputError
from emotune.core.nested import overlaid
from emotune.core.sections import read_yaml
from emotune.faces import report
from emotune.faces.profiles import apply, pinned_data, pinned_model, profiles, read_profile
from emotune.models import pins
from emotune.preferences import journal
from emotune.runs import link, lock, mirror, tables, tracking
from emotune.runs.params import PARAMS, Instructions, kind_of, parse, whole
from emotune.studies import plan, queue

PROFILES = Path("profiles")
LOCK = Path("dvc.lock")
METRICS = Path("metrics")
MODELS = Path("models")
DIALOGUES = Path("data/dialogues")
VOTES = Path("data/votes")
COSTS = "costs.jsonl"  # under .work
# What has nothing to say of a model of instructions.
OF_EMOTIONS = ("estimate", "votes", "prefs")

PARSER = argparse.ArgumentParser(prog="emotune", description="Turn params.yaml, and read what came of it.")
# In the order in which they stand below.
COMMANDS = PARSER.add_subparsers(required=True, metavar="command")

Face = Callable[[argparse.Namespace], int | None]
Argument = tuple[tuple[str, ...], dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand in the repository's root; returns 0, 1 where `--check` found a difference, 2 on bad input."""
    processes.collect_when_imported()
    chosen = PARSER.parse_args(arguments)
    command = chosen.run.__name__.removeprefix("_")
    try:
        if command in OF_EMOTIONS and kind_of(PARAMS) is Instructions:
            raise InputError(f"{command}: of the emotion pipeline, and {PARAMS} here is of instructions; run it above")
        code: int = chosen.run(chosen) or 0
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"emotune: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Who reads our output (`head`) has enough; what is left goes nowhere, or Python complains at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _argument(*names: str, **settings: Any) -> Argument:
    """What argparse's `add_argument` takes."""
    return names, settings


def _command(help: str, *arguments: Argument) -> Callable[[Face], Face]:
    """The function below is a subcommand of its name."""

    def add(run: Face) -> Face:
        command = COMMANDS.add_parser(run.__name__.removeprefix("_"), help=help)
        for names, settings in arguments:
            command.add_argument(*names, **settings)
        command.set_defaults(run=run)
        return run

    return add


@_command(
    "put a profile, a data set or a model into params.yaml",
    _argument("name", nargs="?", help="profiles/NAME.yaml"),
    _argument("--data", metavar="PATH", help="folder or zip of JSONL or of DailyDialog, pinned by its content"),
    _argument("--model", help="local folder, pinned by its content; owner/model@commit; embedded or scratch"),
    _argument("--list", action="store_true", help="the profiles there are"),
)
def _profile(chosen: argparse.Namespace) -> None:
    if chosen.list:
        for name, summary in profiles(PROFILES).items():
            print(f"{name:20} {summary}")
        return
    if not (chosen.name or chosen.data or chosen.model):
        raise InputError(f"profile: name one of {', '.join(profiles(PROFILES))}, or give --data or --model")
    overlays: dict[str, Mapping[str, Any]] = {}
    if chosen.name:
        overlays[f"{PROFILES / chosen.name}.yaml"] = read_profile(PROFILES, chosen.name)
    if chosen.data and kind_of(PARAMS) is Instructions:
        raise InputError("profile: --data is of dialogues; rows of instructions are named in `rows` of params.yaml")
    if chosen.data:
        pinned, said = pinned_data(chosen.data, PARAMS)
        overlays["--data"] = {"data": pinned}
        print(said)
        if read_yaml(PARAMS)["model"]["base"] == pins.EMBEDDED:
            # It has read nothing but embedded dialogues. A profile or --model may name another.
            overlays = {"--data, and no --model": {"model": {"base": pins.SCRATCH}}} | overlays
    if chosen.model:
        overlays["--model"] = {"model": pinned_model(chosen.model)}
    for change in apply(PARAMS, overlays) or [f"{PARAMS} says all of it already"]:
        print(change)


@_command(
    "what each stage will take before it runs: memory, tokens, seconds, disk; exit 1 where one does not fit",
    _argument("name", nargs="?", help="profiles/NAME.yaml laid over params.yaml"),
    _argument("--json", action="store_true", help="the same as JSON"),
)
def _estimate(chosen: argparse.Namespace) -> int:
    from emotune.faces import estimate

    content = overlaid(read_yaml(PARAMS), read_profile(PROFILES, chosen.name) if chosen.name else {})
    said = estimate.rows(estimate.params_of(content, chosen.name or str(PARAMS)), processes.root())
    print(json.dumps(said, indent=2) if chosen.json else estimate.table(said))
    return int(not all(stage["fits"] for stage in said["stages"].values()))


@_command(
    "baseline, sft and dpo side by side, or what came of a study",
    _argument("study", nargs="?", help="as of emotune study: write metrics/studies/STUDY.csv and its table"),
    _argument(
        "--readme", type=Path, nargs="+", metavar="FILE", help="write the tables between these files' markers instead"
    ),
    _argument("--check", action="store_true", help="with --readme: write nothing, exit 1 where a table is stale"),
    _argument("--html", type=Path, metavar="FILE", help="write one page, with charts and replies, instead"),
    _argument("--run", metavar="NAME", dest="kept", help="with --html: the run of metrics/real/NAME"),
)
def _report(chosen: argparse.Namespace) -> int:
    if chosen.study is not None:
        if chosen.readme or chosen.check or chosen.html:
            raise InputError("report: --readme and --html are of the pipeline's run, so they take no study")
        print(_outcome(_own(chosen.study)))
        return 0
    if chosen.html or chosen.kept:
        return _page(chosen)
    if chosen.readme or chosen.check:
        return _readme(chosen)
    # In the folder of another pipeline, that pipeline's.
    told = report.instructions if kind_of(PARAMS) is Instructions else report.text
    print(told(METRICS, processes.work(COSTS), tables.stages(Path("dvc.yaml")), lock.doubts(Path())))
    return 0


def _readme(chosen: argparse.Namespace) -> int:
    """Write the tables of files anew; with --check, say what of them is stale."""
    if chosen.readme is None:
        raise InputError("report: --check says whether a file is stale, so it needs --readme FILE")
    if absent := [path for path in chosen.readme if not path.is_file()]:
        raise InputError(f"report: --readme {absent[0]}: no such file")
    before = {str(path): path.read_text(encoding="utf-8") for path in chosen.readme}
    after = report.filled(before, METRICS, Path("benchmarks/results"))
    stale = [name for name in before if before[name] != after[name]]
    for name in stale:
        if chosen.check:
            lines = before[name].splitlines(), after[name].splitlines()
            diff = difflib.unified_diff(*lines, "shown", "measured", n=0, lineterm="")
            print(f"{name} is stale; `emotune report --readme {name}` writes it", *diff, sep="\n")
        else:
            with records.replacing(Path(name)) as file:
                file.write(after[name])
    return int(chosen.check and bool(stale))


def _page(chosen: argparse.Namespace) -> int:
    """The page of the workspace's run, or of one that was kept; written over an older page, and over nothing else."""
    if chosen.html is None:
        raise InputError("report: --run says whose page is written, so it needs --html FILE")
    if chosen.readme or chosen.check:
        raise InputError("report: --html writes a page, and --readme and --check are for tables: one of them at a time")
    if chosen.html.suffix.lower() != ".html" or chosen.html.is_dir():
        raise InputError(f"report: --html {chosen.html}: a page is a file whose name ends in .html")
    from emotune.faces import page  # with jinja2

    workspace = page.RunFiles(METRICS, LOCK, PARAMS, Path("data/replies"), Path("data/prefs"), processes.work(COSTS))
    files = page.kept_run(METRICS, chosen.kept) if chosen.kept else workspace
    # What was kept was kept whole.
    write = page.instructions if kind_of(PARAMS) is Instructions and not chosen.kept else page.html
    text = write(files, tables.stages(Path("dvc.yaml")), {} if chosen.kept else lock.doubts(Path()))
    with records.replacing(chosen.html) as file:
        file.write(text)
    print(f"{chosen.html}: {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
    return 0


@_command(
    "queue the experiments of a study, run the queue, compare what came of it",
    _argument("name", help="experiments/NAME.yaml; instruct/NAME is that of instruct/experiments, from above it"),
    _argument("--queue-only", action="store_true", help="queue them; `dvc queue start` runs them"),
    _argument("--jobs", type=int, default=1, metavar="N", help="how many experiments run at once"),
)
def _study(chosen: argparse.Namespace) -> int:
    if chosen.jobs < 1:
        raise InputError(f"study: --jobs must be 1 or more, got {chosen.jobs}")
    name = _own(chosen.name)
    study, setups = _planned(name)
    try:
        before = queue.submit(setups, study.target)
        for trial in before.values():
            state = "queued" if trial.state in ("absent", "failed") else f"{trial.state} already"
            print(f"{trial.name}: {state}", flush=True)
        waiting = [trial.name for trial in before.values() if trial.state != "done"]
        if chosen.queue_only:
            return 0
        if waiting:
            queue.start(chosen.jobs)
            queue.watch(waiting, chosen.jobs, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        on = f"`emotune study {chosen.name}` queues the rest and watches it, `dvc queue stop --kill` ends it."
        print(f"\nWhat is queued goes on without this terminal. {on}")
        return 130
    print(f"\n{_outcome(name)}")
    return 0


def _own(name: str) -> str:
    """A study's name in the folder of its pipeline, which becomes the one that we are in."""
    folder, _, own = name.rpartition("/")
    if not Path(folder, "experiments").is_dir():
        raise InputError(f"no study {name!r}: {folder or 'here'} has no folder experiments")
    os.chdir(folder or ".")
    return own


def _planned(name: str) -> tuple[plan.Study, dict[str, plan.Setup]]:
    study = plan.read(Path("experiments"), name)
    if study.target not in (stages := tables.stages(Path("dvc.yaml"))):
        raise InputError(f"study {name}: target must be a stage of dvc.yaml, {', '.join(stages)}; got {study.target}")
    return study, plan.setups(name, study, read_yaml(PARAMS), PROFILES)


def _outcome(name: str) -> str:
    from emotune.studies import findings  # with numpy, pandas and dvc

    return findings.outcome(name, *_planned(name), METRICS, processes.work(COSTS))


@_command(
    "the attempts that generate_prefs has sampled and scored",
    _argument("--clear", action="store_true", help="delete it, and damaged ones set aside beside it"),
    _argument("--yes", action="store_true", help="with --clear: do not ask"),
)
def _journal(chosen: argparse.Namespace) -> int:
    path = processes.work("journal.sqlite")
    if chosen.yes and not chosen.clear:
        raise InputError("journal: --yes answers what --clear asks, so it needs --clear")
    if not chosen.clear:
        print(_held(path))
        return 0
    if not chosen.yes:
        if not sys.stdin.isatty():
            raise InputError("journal: --clear asks on a terminal, and this is none: --clear --yes does not ask")
        if input(f"Delete {path}? What it holds has to be sampled again. [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing deleted")
            return 1
    print(f"{path}: {journal.clear(path)} attempts deleted")
    return 0


@_command(
    "how many prompts made a pair",
    _argument("--what-if", action="store_true", help="how many would by other thresholds, of what was sampled already"),
)
def _prefs(chosen: argparse.Namespace) -> None:
    path = METRICS / "prefs.json"
    measured = records.read_metrics(path) if path.is_file() else {}
    if not measured or (chosen.what_if and "what_if" not in measured):
        raise InputError(
            f"prefs: {path} does not say what other thresholds would give; `dvc repro generate_prefs` does, "
            "but where prefs.source is votes: none makes or unmakes a pair of people's"
        )
    print(tables.aligned(tables.what_if(measured) if chosen.what_if else tables.preferences(METRICS)))


@_command(
    "talk to a model, the emotion chosen message by message (/help in it); in instruct/, instructions",
    _argument(
        "--model",
        choices=("dpo", "sft", "baseline", "zero-shot"),
        help="dpo where not given; in instruct/ sft or zero-shot, the base model, and sft where not given",
    ),
)
def _chat(chosen: argparse.Namespace) -> None:
    p = whole(PARAMS)
    makers = lock.INSTRUCTED if isinstance(p, Instructions) else lock.MAKERS
    name = chosen.model or list(makers)[-1]
    if name not in makers:
        raise InputError(f"chat: --model must be one of {', '.join(makers)} in this pipeline, got {name}")
    if why := lock.doubts(Path()).get(makers[name]):
        print(f"{name} is STALE, it may be of another run: {why}", file=sys.stderr)
    if isinstance(p, Instructions):
        from emotune.faces import instructions  # with torch: seconds

        instructions.chat_with(MODELS, name, p)
        return
    from emotune.faces import chat

    chat.run(MODELS, name, parse(PARAMS))


@_command(
    "a web page: models side by side, or two replies without names to vote on",
    _argument("--host", default="127.0.0.1", help="where to listen; only this machine where not given"),
    _argument("--port", type=int, default=8765, help="8765 where not given; 0 is any free one"),
    _argument("--blind", action="store_true", help=f"two replies, no names: votes go to {VOTES}/VOTER.jsonl"),
    _argument(
        "--models",
        nargs="+",
        choices=tuple(lock.MAKERS),
        help="with --blind: whose replies; sft and dpo where not given; one twice for two candidates of it",
    ),
)
def _compare(chosen: argparse.Namespace) -> None:
    p = whole(PARAMS)
    models = chosen.models or ["sft", "dpo"]
    if chosen.models and not chosen.blind:
        raise InputError("compare: --models says whose replies are voted on, so it needs --blind")
    if len(models) < 2:
        raise InputError(f"compare: --models takes two or more, got {models[0]}; twice is two candidates of it")
    doubts = lock.doubts(Path())
    if isinstance(p, Instructions):
        if chosen.blind:
            raise InputError("compare: --blind asks for replies in an emotion, and models of instructions know none")
        from emotune.faces import instructions

        instructions.compare_all(MODELS, p, chosen.host, chosen.port, doubts)
        return
    p = parse(PARAMS)
    if chosen.blind:
        from emotune.faces import blind  # with torch: seconds

        blind.run(MODELS, p, chosen.host, chosen.port, models, DIALOGUES, VOTES, doubts)
        return
    from emotune.faces import compare

    compare.run(MODELS, p, chosen.host, chosen.port, doubts)


@_command(
    "what people's votes say: whose replies they prefer, whether they agree, and whether the judge is right",
    _argument("path", nargs="?", type=Path, default=VOTES, help=f"a file or folder of votes; {VOTES} where not given"),
    _argument("--pairs", type=Path, metavar="FILE", help="write the pairs that they make to a JSONL instead"),
)
def _votes(chosen: argparse.Namespace) -> None:
    p = parse(PARAMS)
    from emotune.faces import votes  # with numpy and scikit-learn

    if chosen.pairs:
        from emotune.faces.chat import located
        from emotune.models import loading  # with torch: seconds

        tokenizer = loading.load_tokenizer(located(MODELS, "sft"), None)
        count = votes.write_pairs(chosen.pairs, chosen.path, tokenizer, p)
        print(f"{count} pairs, for reward_model.pairs: {chosen.pairs}@{records.sha256(chosen.pairs)}")
        return
    measured = votes.measured(chosen.path, MODELS, p)
    records.write_metrics(METRICS / "votes.json", measured)
    print(f"votes {measured['votes']}, voters {measured['voters']}, questions {measured['questions']}")
    for head, table in tables.votes(measured).items():
        print(f"\n{head}\n{tables.aligned(table)}")
    pin = records.digest(chosen.path)
    print(f"\n{METRICS / 'votes.json'} has this for page and cards. For dpo and the reward model, in params.yaml")
    print(f"prefs.votes: {chosen.path}\nprefs.votes_revision: {pin}\nreward_model.pairs: [contrast, votes@{pin}]")
    if absent := votes.unknown(measured):
        print(f"not in {MODELS}, so of another run: {', '.join(absent)}", file=sys.stderr)


@_command("MLflow runs for the stages that DVC restored or skipped")
def _mirror(_: argparse.Namespace) -> None:
    if tracking.off():
        print("EMOTUNE_TRACKING=off: nothing is mirrored")
        return
    with tracking.store() as (client, experiment):
        for line in mirror.mirror(client, experiment):
            print(f"mirrored {line}", flush=True)


@_command(
    "experiment, MLflow run, commit or published revision: the other three",
    _argument("name", help="of a DVC experiment; id of an MLflow run; a commit; revision on the Hub"),
)
def _link(chosen: argparse.Namespace) -> None:
    from emotune.publish import hub

    with tracking.store() as (client, experiment):
        rows = link.link(chosen.name, client, experiment, processes.work("published.jsonl"), hub.origin)
    for kind, id, remark in rows:
        print(f"{kind:10}  {id:40}  {remark}".rstrip())


# What attempts are of, by what alone such a one is made of; others are of candidates.
ATTEMPTS = {"reward_model": "learned scores", "evaluate": "verdicts", "questions": "questions"}


def _held(path: Path) -> str:
    """A row for each way in which attempts were made, of what, by which base model and sft adapter, newest first."""
    contents = journal.contents(path)
    if not contents.held:
        return f"{path}: no attempts"
    table = [["of", "base", "sft", "attempts", "prompts", "first", "last"]]
    for held in contents.held:
        models = [str(held.made_of.get(name, tables.ABSENT))[:12] for name in ("base", "sft")]
        times = [datetime.fromtimestamp(at).isoformat(" ", "minutes") for at in (held.first, held.last)]
        kind = next((name for key, name in ATTEMPTS.items() if key in held.made_of), "candidates")
        table.append([kind, *models, str(held.attempts), str(held.prompts), *times])
    total = sum(held.attempts for held in contents.held)
    return f"{path}: {total} attempts, {contents.size / 1e6:.1f} MB\n\n{tables.aligned(table)}"


@_command(
    "whether dvc.lock tells of the files here; exit 1 with the reasons if not",
    _argument("--without-data", action="store_true", help="also where data that it names are nowhere to be had"),
)
def _current(chosen: argparse.Namespace) -> int:
    locked = lock.compared(Path())
    if reasons := locked.differs + ([] if chosen.without_data else locked.lost):
        only_lost = "dvc.lock agrees with the files here, and data that it names are nowhere to be had:"
        print("dvc.lock is not current:" if locked.differs else only_lost, *reasons, sep="\n  ")
        return 1
    brings = {lock.IN_CACHE: "dvc checkout", lock.IN_REMOTE: "dvc pull dvc.yaml"}
    counts = {place: len(locked.outs[place]) for place in brings}
    absent = [f"{n} in the {place}: {brings[place]}" for place, n in counts.items() if n]
    print("dvc.lock is current" + (f"; outs not in the workspace, {', '.join(absent)}" if absent else ""))
    return 0


@_command(
    "send adapters, preference data and their cards to the Hugging Face Hub",
    _argument("--dry-run", type=Path, metavar="FOLDER", help="write all of it to a folder, and send nothing"),
    _argument("--check", action="store_true", help="load what was sent, and compare; exit 1 where it differs"),
    _argument("--force", metavar="REASON", help="send what the gate refuses; the cards carry the reason"),
    _argument("--merged", action="store_true", help="the dpo adapter added to its base model in bfloat16, too"),
    _argument("--tag", help="a release: names, in every repository, what was sent"),
    _argument("--public", action="store_true", help="for everybody to see; otherwise repositories are private"),
)
def _publish(chosen: argparse.Namespace) -> int:
    from emotune.publish import release

    if chosen.dry_run and chosen.check:
        raise InputError("publish: --check compares what was sent, and --dry-run sends nothing: give one of them")
    if chosen.force is not None and not chosen.force.strip():
        raise InputError("publish: --force needs a reason, which the cards carry; got an empty one")
    prepared = release.prepare(Path(), METRICS, chosen.force, chosen.merged, chosen.tag, chosen.public)
    if chosen.dry_run:
        return int(not release.write(prepared, chosen.dry_run))
    if chosen.check:
        return int(not release.compare(prepared))
    return int(not release.send(prepared, processes.work("published.jsonl")))


@_command(
    "what this machine has and lacks; exit 1 if the default cannot run here",
    _argument("--json", action="store_true", help="the same as JSON"),
)
def _doctor(chosen: argparse.Namespace) -> int:
    from emotune.faces import doctor

    pipeline = Path() if kind_of(PARAMS) is Instructions else None
    machine, profiles = doctor.examined(processes.root(), pipeline)
    if chosen.json:
        print(json.dumps({"machine": list(map(asdict, machine)), "profiles": list(map(asdict, profiles))}, indent=2))
    else:
        print(doctor.text(machine), doctor.text(profiles), sep="\n\n")
    return int(any(finding.state == "fail" for finding in machine))


if __name__ == "__main__":
    sys.exit(main())
