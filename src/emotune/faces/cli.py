"""The subcommands of emotune, which a user calls beside `make` and `dvc`; `emotune --help` lists them."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from emotune.core import processes, records
from emotune.core.errors import InputError
from emotune.core.sections import read_yaml
from emotune.faces import report
from emotune.faces.profiles import apply, pinned_data, pinned_model, profiles, read_profile
from emotune.preferences import journal
from emotune.runs import tables
from emotune.runs.params import PARAMS, parse

PROFILES = Path("profiles")
LOCK = Path("dvc.lock")
METRICS = Path("metrics")
RESULTS = Path("benchmarks/results")
MODELS = Path("models")
STUDIES = Path("experiments")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand in the repository's root; returns 0, 1 where `--check` found a difference, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="emotune", description="Turn params.yaml, and read what came of it.")
    commands = parser.add_subparsers(required=True, metavar="command")

    profile = commands.add_parser("profile", help="put a profile, a data set or a model into params.yaml")
    profile.add_argument("name", nargs="?", help="profiles/NAME.yaml")
    profile.add_argument("--data", metavar="PATH", help="folder or zip, pinned by its content")
    profile.add_argument("--model", help="local folder, pinned by its content; owner/model@commit; or embedded")
    profile.add_argument("--list", action="store_true", help="the profiles there are")
    profile.set_defaults(run=_profile)

    shown = commands.add_parser("report", help="baseline, sft and dpo side by side, or what came of a study")
    shown.add_argument("study", nargs="?", help="experiments/STUDY.yaml: write metrics/studies/STUDY.csv and its table")
    shown.add_argument(
        "--readme", type=Path, nargs="+", metavar="FILE", help="write the tables between these files' markers instead"
    )
    shown.add_argument(
        "--check", action="store_true", help="with --readme: write nothing, exit 1 where a table is stale"
    )
    shown.add_argument("--html", type=Path, metavar="FILE", help="write one page, with charts and replies, instead")
    shown.add_argument("--run", metavar="NAME", dest="kept", help="with --html: the run of metrics/real/NAME")
    shown.set_defaults(run=_report)

    studied = commands.add_parser(
        "study", help="queue the experiments of a study, run the queue, compare what came of it"
    )
    studied.add_argument("name", help="experiments/NAME.yaml")
    studied.add_argument("--queue-only", action="store_true", help="queue them; `dvc queue start` runs them")
    studied.add_argument("--jobs", type=int, default=1, metavar="N", help="how many experiments run at once")
    studied.set_defaults(run=_study)

    memo = commands.add_parser("journal", help="the attempts that generate_prefs has sampled and scored")
    memo.add_argument("--clear", action="store_true", help="delete it, and damaged ones set aside beside it")
    memo.add_argument("--yes", action="store_true", help="with --clear: do not ask")
    memo.set_defaults(run=_journal)

    talk = commands.add_parser("chat", help="talk to a model, the emotion chosen message by message (/help in it)")
    talk.add_argument("--model", choices=("dpo", "sft", "baseline"), default="dpo", help="dpo where not given")
    talk.set_defaults(run=_chat)

    beside = commands.add_parser("compare", help="a web page: baseline, sft and dpo side by side")
    beside.add_argument("--host", default="127.0.0.1", help="where to listen; only this machine where not given")
    beside.add_argument("--port", type=int, default=8765, help="8765 where not given; 0 is any free one")
    beside.set_defaults(run=_compare)

    mirrored = commands.add_parser("mirror", help="MLflow runs for the stages that DVC restored or skipped")
    mirrored.set_defaults(run=_mirror)

    linked = commands.add_parser("link", help="experiment, MLflow run, commit or published revision: the other three")
    linked.add_argument("name", help="of a DVC experiment; id of an MLflow run; a commit; revision on the Hub")
    linked.set_defaults(run=_link)

    current = commands.add_parser(
        "current", help="whether dvc.lock tells of the files here; exit 1 with the reasons if not"
    )
    current.set_defaults(run=_current)

    sent = commands.add_parser("publish", help="send adapters, preference data and their cards to the Hugging Face Hub")
    sent.add_argument("--dry-run", type=Path, metavar="FOLDER", help="write all of it to a folder, and send nothing")
    sent.add_argument("--check", action="store_true", help="load what was sent, and compare; exit 1 where it differs")
    sent.add_argument("--force", metavar="REASON", help="send what the gate refuses; the cards carry the reason")
    sent.add_argument("--merged", action="store_true", help="the dpo adapter added to its base model in bfloat16, too")
    sent.add_argument("--tag", help="a release: names, in every repository, what was sent")
    sent.add_argument("--public", action="store_true", help="for everybody to see; otherwise repositories are private")
    sent.set_defaults(run=_publish)

    doctor = commands.add_parser(
        "doctor", help="what this machine has and lacks; exit 1 if the default cannot run here"
    )
    doctor.add_argument("--json", action="store_true", help="the same as JSON")
    doctor.set_defaults(run=_doctor)

    chosen = parser.parse_args(arguments)
    try:
        code = int(chosen.run(chosen))
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"emotune: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Who reads our output (`head`) has enough; what is left goes nowhere, or Python complains at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _profile(chosen: argparse.Namespace) -> int:
    if chosen.list:
        for name, summary in profiles(PROFILES).items():
            print(f"{name:20} {summary}")
        return 0
    if not (chosen.name or chosen.data or chosen.model):
        raise InputError(f"profile: name one of {', '.join(profiles(PROFILES))}, or give --data or --model")
    overlays: dict[str, Mapping[str, Any]] = {}
    if chosen.name:
        overlays[f"{PROFILES / chosen.name}.yaml"] = read_profile(PROFILES, chosen.name)
    if chosen.data:
        overlays["--data"] = {"data": pinned_data(chosen.data)}
    if chosen.model:
        overlays["--model"] = {"model": pinned_model(chosen.model)}
    for change in apply(PARAMS, overlays) or [f"{PARAMS} says all of it already"]:
        print(change)
    return 0


def _report(chosen: argparse.Namespace) -> int:
    if chosen.study is not None:
        if chosen.readme or chosen.check or chosen.html:
            raise InputError("report: --readme and --html are of the pipeline's run, so they take no study")
        print(_evidence(chosen.study))
        return 0
    if chosen.html or chosen.kept:
        return _page(chosen)
    if chosen.readme is None:
        if chosen.check:
            raise InputError("report: --check says whether a file is stale, so it needs --readme FILE")
        print(report.text(METRICS, processes.work("costs.jsonl"), tables.stages(Path("dvc.yaml"))))
        return 0
    if absent := [path for path in chosen.readme if not path.is_file()]:
        raise InputError(f"report: --readme {absent[0]}: no such file")
    before = {str(path): path.read_text(encoding="utf-8") for path in chosen.readme}
    after = report.filled(before, METRICS, RESULTS)
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

    workspace = page.Run(METRICS, LOCK, PARAMS, Path("data/replies"), Path("data/prefs"), processes.work("costs.jsonl"))
    run = page.kept(METRICS, chosen.kept) if chosen.kept else workspace
    text = page.html(run, tables.stages(Path("dvc.yaml")))
    with records.replacing(chosen.html) as file:
        file.write(text)
    print(f"{chosen.html}: {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
    return 0


def _study(chosen: argparse.Namespace) -> int:
    from emotune.studies import plan, queue

    if chosen.jobs < 1:
        raise InputError(f"study: --jobs must be 1 or more, got {chosen.jobs}")
    asked = plan.read(STUDIES, chosen.name)
    settings, wanted = plan.plan(chosen.name, asked, read_yaml(PARAMS), PROFILES)
    try:
        before = queue.queue(asked, settings, wanted)
        for made in before.values():
            print(
                f"{made.name}: {'queued' if made.state in ('absent', 'failed') else f'{made.state} already'}",
                flush=True,
            )
        waiting = [made.name for made in before.values() if made.state != "done"]
        if chosen.queue_only:
            return 0
        if waiting:
            queue.start(chosen.jobs)
            queue.watch(waiting, chosen.jobs, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print(
            f"\nWhat is queued goes on without this terminal. `emotune study {chosen.name}` queues the rest and "
            "watches it, `dvc queue stop --kill` ends it."
        )
        return 130
    print(f"\n{_evidence(chosen.name)}")
    return 0


def _evidence(name: str) -> str:
    """Write metrics/studies/NAME.csv from the experiments that DVC has of a study, and return its table."""
    from emotune.studies import evidence, findings, plan, queue

    asked = plan.read(STUDIES, name)
    settings, wanted = plan.plan(name, asked, read_yaml(PARAMS), PROFILES)
    made = queue.experiments(wanted, asked.target)
    if all(experiment.state == "absent" for experiment in made.values()):
        raise InputError(
            f"report: no experiment here has the params of study {name} and this code; `emotune study {name}` runs them"
        )
    table = evidence.rows(asked, settings, made, processes.work("costs.jsonl"))
    path = METRICS / "studies" / f"{name}.csv"
    evidence.write(path, table)
    shown = findings.shown(asked, evidence.read(path), "\n{}–{}", wrap=30)
    told = [tables.aligned(shown), f"{findings.note(asked)}\nAll of it: {path}"]
    path = path.with_stem(f"{name}-effects")
    if changes := evidence.effects(asked, list(made.values())):
        evidence.write(path, changes)
        shown = findings.effects_shown(asked, evidence.read(path), "\n{}–{}")
        told += [f"What one change does, all else alike\n{tables.aligned(shown)}"]
    else:
        path.unlink(missing_ok=True)
    return "\n\n".join(told)


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


def _chat(chosen: argparse.Namespace) -> int:
    p = parse(PARAMS)
    from emotune.faces import chat  # with torch: seconds

    chat.run(MODELS, chosen.model, p)
    return 0


def _compare(chosen: argparse.Namespace) -> int:
    p = parse(PARAMS)
    from emotune.faces import compare  # with torch: seconds

    compare.run(MODELS, p, chosen.host, chosen.port)
    return 0


def _mirror(_: argparse.Namespace) -> int:
    from emotune.runs import mirror, tracking

    if tracking.off():
        print("EMOTUNE_TRACKING=off: nothing is mirrored")
        return 0
    with tracking.store() as (client, experiment):
        for line in mirror.mirror(client, experiment):
            print(f"mirrored {line}", flush=True)
    return 0


def _link(chosen: argparse.Namespace) -> int:
    from emotune.runs import link, tracking

    with tracking.store() as (client, experiment):
        rows = link.link(chosen.name, client, experiment, processes.work("published.jsonl"))
    for kind, id, remark in rows:
        print(f"{kind:10}  {id:40}  {remark}".rstrip())
    return 0


def _held(path: Path) -> str:
    """A row for each way in which attempts were made, by their base model and sft adapter, the newest first."""
    contents = journal.contents(path)
    if not contents.held:
        return f"{path}: no attempts"
    table = [["base", "sft", "attempts", "prompts", "first", "last"]]
    for held in contents.held:
        models = [str(held.made_of.get(name, tables.ABSENT))[:12] for name in ("base", "sft")]
        times = [datetime.fromtimestamp(at).isoformat(" ", "minutes") for at in (held.first, held.last)]
        table.append([*models, str(held.attempts), str(held.prompts), *times])
    total = sum(held.attempts for held in contents.held)
    return f"{path}: {total} attempts, {contents.size / 1e6:.1f} MB\n\n{tables.aligned(table)}"


def _current(chosen: argparse.Namespace) -> int:
    from emotune.runs import lock  # with dvc: a third of a second

    found = lock.compared(Path())
    if reasons := found.differs + found.lost:
        only_lost = "dvc.lock agrees with the files here, and data that it names are nowhere to be had:"
        print("dvc.lock is not current:" if found.differs else only_lost, *reasons, sep="\n  ")
        return 1
    brought = {lock.IN_CACHE: "dvc checkout", lock.IN_REMOTE: "dvc pull"}
    absent = [
        f"{len(found.outs[place])} in the {place}: {command}" for place, command in brought.items() if found.outs[place]
    ]
    print("dvc.lock is current" + (f"; outs not in the workspace, {', '.join(absent)}" if absent else ""))
    return 0


def _publish(chosen: argparse.Namespace) -> int:
    from emotune.publish import release

    if chosen.dry_run and chosen.check:
        raise InputError("publish: --check compares what was sent, and --dry-run sends nothing: give one of them")
    if chosen.force is not None and not chosen.force.strip():
        raise InputError("publish: --force needs a reason, which the cards carry; got an empty one")
    return release.publish(
        Path(),
        METRICS,
        processes.work("published.jsonl"),
        into=chosen.dry_run,
        check=chosen.check,
        reason=chosen.force,
        merged=chosen.merged,
        tag=chosen.tag,
        public=chosen.public,
    )


def _doctor(chosen: argparse.Namespace) -> int:
    from emotune.faces import doctor

    machine, profiles = doctor.examined(processes.root())
    if chosen.json:
        print(json.dumps({"machine": list(map(asdict, machine)), "profiles": list(map(asdict, profiles))}, indent=2))
    else:
        print(doctor.text(machine), doctor.text(profiles), sep="\n\n")
    return int(any(finding.state == "fail" for finding in machine))


if __name__ == "__main__":
    sys.exit(main())
