"""Studies: experiments that answer one question, each a file of experiments/, queued by DVC under their own names.

A variant of a study is tried as the experiment STUDY-VARIANT. It counts as done where such an experiment has the params
that the study asks for now, and no code that its stages depend on has changed since; it is then not queued again, from
whatever commit it was made. The queue belongs to DVC: it goes on when whoever watches it leaves.
"""

import hashlib
import itertools
import os
import pickle
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil

from emotune.core import git, nested, processes
from emotune.core.errors import InputError
from emotune.core.sections import read_yaml
from emotune.runs import lock, mirror, params
from emotune.studies.plan import Setup, hydra

# Seconds between two looks at the queue, and after how many of them the workers are looked for.
PAUSE = 2.0
LOOKS = 15
# What follows the name of an experiment whose replacement has not run yet; no name that a study gives has a plus.
FORMER = "+former"
# Where code lies, from the folder of a pipeline.
CODE = ("src/", "../src/")


@dataclass(frozen=True, slots=True)
class Trial:
    """A variant as DVC has it: `state` is done, running, queued, failed or absent; its files are those of `commit`.

    `attempt` is what costs.jsonl calls it, None where the queue does not know it any more.
    """

    name: str
    state: str
    commit: str | None = None
    log: Path | None = None
    attempt: str | None = None


def trials(setups: Mapping[str, Setup], target: str) -> dict[str, Trial]:
    """For each name, the experiment with the params that it is set up with and the code that is here now.

    Of several, one that is done counts before one that runs or waits, and these before one that failed.
    """
    stages = read_yaml(Path("dvc.yaml"))["stages"]
    needed, code, address = needs(stages, target), code_of(stages, target), _address("dvc.yaml", target)
    fitting = {name: Trial(name, "absent") for name in setups}
    for trial in [*_unfinished(), *_done(setups)]:
        if trial.name in setups and trial.commit and _same(trial.commit, setups[trial.name].params, code):
            reached = is_run(trial.commit, needed) if trial.state == "done" else address in _targets(trial.commit)
            fitting |= {trial.name: trial} if reached else {}
    return fitting


def _same(commit: str, wanted: Mapping[str, Any], code: Sequence[str]) -> bool:
    """Whether a commit has these params, and every file of the code as it is here now."""
    try:
        if params.checked(mirror.yaml_of(commit, "params.yaml"), commit).model_dump(mode="json") != wanted:
            return False
    except InputError:
        return False
    return not (code and git.told("diff", "--name-only", commit, "--", *code))


def is_run(commit: str, stages: Sequence[str]) -> bool:
    """Whether these stages ran with the params and the code of a commit: its dvc.lock may have older runs of some."""
    entries, whole = mirror.entries(commit), dict(nested.leaves(mirror.yaml_of(commit, "params.yaml")))

    def is_own(entry: Mapping[str, Any]) -> bool:
        had = dict(nested.leaves(entry.get("params", {}).get("params.yaml", {})))
        code = {dep["path"]: dep["md5"] for dep in entry.get("deps", []) if dep["path"].startswith(CODE)}
        return had.items() <= whole.items() and all(_md5(commit, path) == md5 for path, md5 in code.items())

    return all(name in entries and is_own(entries[name]) for name in stages)


def _md5(commit: str, path: str) -> str | None:
    """DVC's hash of a file or folder of a commit; None where it has none of that name."""
    object_id = git.ask("rev-parse", "--verify", "--quiet", f"{commit}:./{path}")
    return _md5_of(object_id) if object_id else None


@cache
def _md5_of(object_id: str) -> str:
    if git.told("cat-file", "-t", object_id) == "blob":
        return lock.md5({"": git.run("cat-file", "blob", object_id)})
    # Asked below the root, git looks for that folder in the tree.
    packed = git.run("-C", str(processes.root()), "archive", "--format=tar", object_id)
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        files = {file.name: archive.extractfile(file) for file in archive}
        return lock.md5({name: file.read() for name, file in files.items() if file})


def _targets(commit: str) -> Sequence[str]:
    """The stages that an entry of the queue was told to run, as DVC packs them into its commit."""
    path = os.path.relpath(processes.root() / ".dvc/tmp/repro.dat")
    packed: Mapping[str, Any] = pickle.loads(git.run("show", f"{commit}:./{path}"))["kwargs"]
    return packed.get("targets") or ()


def _done(names: Container[str]) -> Iterator[Trial]:
    """The experiments of these names that ended well, the oldest first; also those that wait to be replaced."""
    attempts = {(run.entry.name, run.result.exp_hash): run.entry.stash_rev for run in _queue().iter_success()}
    for experiment in mirror.experiments():
        if (name := experiment.name.removesuffix(FORMER)) in names:
            # `dvc: commit experiment HASH`
            hash = git.told("log", "-1", "--format=%s", experiment.revision).rpartition(" ")[2]
            yield Trial(name, "done", experiment.revision, attempt=attempts.get((name, hash)))


def _unfinished() -> Iterator[Trial]:
    """The experiments that the queue holds and that did not end well: failed, then queued, then running."""
    queue = _queue()
    states = {
        "failed": [ended.entry for ended in queue.iter_failed()],
        "queued": [*queue.iter_queued()],
        "running": [*queue.iter_active()],
    }
    for state, entries in states.items():
        for entry in entries:
            started = queue.proc.get(entry.stash_rev)
            log = Path(started.stdout) if started else None
            yield Trial(entry.name, state, entry.stash_rev, log, entry.stash_rev)


def needs(stages: Mapping[str, Any], target: str) -> list[str]:
    """A stage of dvc.yaml, and all that have to run before it."""
    outs = ((out, name) for name, stage in stages.items() for out in stage.get("outs", []))
    makers = {out if isinstance(out, str) else next(iter(out)): name for out, name in outs}
    needed = [target]
    for stage in needed:  # it grows
        makers_of = dict.fromkeys(makers[dep] for dep in stages[stage].get("deps", []) if dep in makers)
        needed += [maker for maker in makers_of if maker not in needed]
    return needed


def code_of(stages: Mapping[str, Any], target: str) -> list[str]:
    """What a stage of dvc.yaml and all it needs depend on under src: files, folders and, of names to fill in, `*`."""
    deps = (dep for stage in needs(stages, target) for dep in stages[stage].get("deps", []))
    # Of a template that params.yaml chooses, all.
    return list(dict.fromkeys(re.sub(r"\$\{.*?\}", "*", dep) for dep in deps if dep.startswith(CODE)))


def _address(file: str, name: str) -> str:
    """A stage of dvc.yaml, or a value of params.yaml, of this folder, as DVC is told of it in its root."""
    here, root = Path.cwd(), processes.root()
    return name if here == root else f"{(here / file).relative_to(root).as_posix()}:{name}"


def _queue() -> Any:
    from dvc.repo import Repo

    return Repo().experiments.celery_queue


def submit(setups: Mapping[str, Setup], target: str) -> dict[str, Trial]:
    """Queue what is neither done, running nor queued, a failed run anew; returns the trials as they were before."""
    before = trials(setups, target)
    missing = [trial.name for trial in before.values() if trial.state in ("absent", "failed")]
    # What the queue still holds under such a name is an older attempt: other params, other code, or a failure.
    for old in [trial for trial in _unfinished() if trial.name in missing and trial.state in ("failed", "queued")]:
        _queue().remove([old.commit])
    _forget(before)
    head = git.told("rev-parse", "HEAD")
    for name in missing:
        settings = setups[name].settings.items()
        values = [word for key, value in settings for word in ("-S", _address("params.yaml", f"{key}={hydra(value)}"))]
        # What has that name on this commit has other params or code. Not --force: it would run what the cache restores.
        if former := git.ask("rev-parse", "--verify", "--quiet", _ref(head, name)):
            git.told("update-ref", _ref(head, name + FORMER), former)
            git.told("update-ref", "-d", _ref(head, name))
        _dvc("exp", "run", "--queue", "--name", name, *values, _address("dvc.yaml", target))
    return before


def _forget(trials: Mapping[str, Trial]) -> None:
    """Delete the experiments that waited for those which are done now."""
    for experiment in mirror.experiments():
        new = trials.get(experiment.name.removesuffix(FORMER))
        if new and new.name != experiment.name and new.state == "done" and new.commit != experiment.revision:
            git.told("update-ref", "-d", _ref(experiment.baseline, experiment.name))


def _ref(baseline: str, name: str) -> str:
    return f"{mirror.EXPERIMENTS}/{baseline[:2]}/{baseline[2:]}/{name}"


def start(jobs: int) -> None:
    """Start as many workers of DVC's queue as are asked for; those that work already count."""
    queue = _queue()
    # A machine or a worker that died leaves an experiment running for ever: it failed.
    while (names := [entry.name for entry in queue.iter_active()]) and not _workers(queue):
        queue.kill(names)
    if len(_workers(queue)) < jobs:
        _dvc("queue", "start", "--jobs", str(jobs))


def _workers(queue: Any) -> set[str]:
    """The workers of a queue that live here, by their processes: a busy one may not answer; else those that answer."""
    own = f"dvc-exp-{hashlib.sha256(queue.wdir.encode()).hexdigest()[:6]}-"
    names = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            names |= {word for word in words if word.startswith(own) and "queue-worker" in words}
    return names or set(queue.worker_status())


def watch(names: Sequence[str], jobs: int, say: Callable[[str], None]) -> None:
    """Say what changes until none of the experiments runs or waits. Workers that died are replaced."""
    began = time.monotonic()
    before = dict.fromkeys(names, "queued")
    for look in itertools.count(1):
        unfinished = {trial.name: trial for trial in _unfinished() if trial.name in names}
        for number, name in enumerate(names, start=1):
            news = f"{unfinished[name].state}{stage_of(unfinished[name])}" if name in unfinished else "done"
            if before[name] != news:
                minutes, seconds = divmod(int(time.monotonic() - began), 60)
                say(f"{minutes:3}:{seconds:02}  {number}/{len(names)}  {name}  {news}")
            before[name] = news
        if not {"queued", "running"} & {trial.state for trial in unfinished.values()}:
            return
        if look % LOOKS == 0 and not _workers(_queue()):
            start(jobs)
        time.sleep(PAUSE)


def stage_of(trial: Trial) -> str:
    """`, stage sft` while it runs, by its log."""
    stages = re.findall(r"^Running stage '(.+?)'", _text(trial.log), flags=re.MULTILINE)
    return f", stage {stages[-1]}" if stages and trial.state == "running" else ""


def reason(trial: Trial) -> str:
    """Why a failed experiment failed: what its log says last, before DVC's own word."""
    text = _text(trial.log)
    if killed := re.search(r"exited with (?:-9|137)\b", text):
        return f"killed ({killed[0]}), as Linux does where memory runs out"
    if not re.search(r"^ERROR: ", text, flags=re.MULTILINE):
        return "stopped, or killed with its worker"
    return [line for line in text.splitlines() if line.strip() and not re.match("ERROR: failed to repro", line)][-1]


def _text(log: Path | None) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log and log.is_file() else ""


def _dvc(*words: str) -> None:
    """Run a command of DVC to its end, whatever the terminal says: while it queues, it holds the workspace's state."""
    # The pipeline's `python` and the worker's `dvc` are those beside this one, whatever the PATH says.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    # A file, not a pipe: a worker that `dvc queue start` leaves behind would hold that open.
    with TemporaryFile("w+") as said:
        process = subprocess.Popen(
            ["dvc", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=os.environ | {"PATH": path},
            # Where a worker starts, there it runs every entry of the queue.
            cwd=processes.root(),
            start_new_session=True,
        )
        try:
            process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
        if process.returncode:
            said.seek(0)
            raise InputError(f"dvc {' '.join(words)}: {said.read().strip()}")
