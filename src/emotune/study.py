"""Studies: experiments that answer one question, each a file of experiments/, queued by DVC under their own names.

A run of a study is the experiment STUDY-RUN. It counts as done where such an experiment has the params that the study
asks for now, and no code that its stages import has changed since; it is then not queued again, from whatever commit
it was made. The queue belongs to DVC: it goes on when whoever watches it leaves.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML

from emotune import git, mirror, params, report
from emotune.errors import InputError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")]
# In what part of a model's measurements a column's value lies, and its decimals; all but the judge's are a model's own.
COLUMNS = report.COLUMNS | {"prompt text": ("text", "prompt_text_share", 3)}
JUDGE = "judge"
# No function of sums over dialogues, so no paired test.
UNTESTED = ("distinct-2", "words")
# Seconds between two looks at the queue, and after how many of them the workers are looked for.
PAUSE = 2.0
LOOKS = 15


class Bar(params.Section):
    """A published result, to stand beside ours."""

    accuracy: float
    f1: float


class Run(params.Section):
    """One experiment of a study: a profile, single values of params.yaml over it, or both."""

    name: Name
    profile: str | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)


class Study(params.Section):
    """One file of experiments/. `runs` lists the experiments; or `grid`, lists of values, makes every combination."""

    description: str
    target: Literal["baseline", "evaluate"]
    models: Annotated[tuple[Literal["baseline", "sft", "dpo"], ...], Field(min_length=1)]
    show: Annotated[tuple[str, ...], Field(min_length=1)]
    tests: Annotated[tuple[str, ...], Field(min_length=1)]
    against: str
    common: dict[str, Any] = Field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = Field(default_factory=dict)
    published: dict[str, Bar] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.runs) == bool(self.grid):
            raise ValueError("must have either runs or grid")
        tested = [column for column in COLUMNS if column not in UNTESTED]
        for key, known in (("show", [*COLUMNS, JUDGE]), ("tests", tested)):
            if wrong := [name for name in getattr(self, key) if name not in known]:
                raise ValueError(f"{key} takes {', '.join(known)}; got {', '.join(wrong)}")
        names = [run.name for run in self.asked()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"must name each run once, and two are {twice}")
        if self.against not in ("best", *names):
            raise ValueError(f"against must be best or one of {', '.join(names)}, got {self.against!r}")
        if (self.target == "baseline") != (self.models == ("baseline",)):
            raise ValueError(f"models must be [baseline] where target is baseline, and only there; got {self.models}")
        return self

    def asked(self) -> list[Run]:
        """The runs as listed, or every combination of the grid, named after its values: rank-8_alpha-16."""
        if self.runs:
            return list(self.runs)
        points = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return [Run(name=_named(point), overrides=point) for point in points]


def _named(point: Mapping[str, Any]) -> str:
    """`rank-8_rslora-true`; a value that is a name is enough where it is the only one: `out_inst`."""
    only = next(iter(point.values())) if len(point) == 1 else None
    if isinstance(only, str):
        return only
    plain = [f"{key.rsplit('.', 1)[-1]}-{v if isinstance(v, str) else json.dumps(v)}" for key, v in point.items()]
    return re.sub(r"[^\w.-]+", "-", "_".join(plain))


def read(folder: Path, name: str) -> Study:
    """experiments/NAME.yaml, checked; InputError says what is wrong with it, or which studies there are."""
    path = folder / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in folder.glob("*.yaml")))
        raise InputError(f"no study {name!r}; there are {there or f'none in {folder}'}")
    try:
        return Study.model_validate_json(json.dumps(params.read_yaml(path), default=str))
    except ValidationError as error:
        found = [
            f"{path}: {'.'.join(str(part) for part in problem['loc']) or 'the study'}: "
            + str(problem.get("ctx", {}).get("error", problem["msg"]))
            for problem in error.errors()
        ]
        raise InputError("\n".join(found)) from None


# What a run sets.


def plan(
    name: str, study: Study, content: Mapping[str, Any], profiles: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """For each experiment, the dotted keys that it sets in `content`, a params.yaml, and the whole that comes of it."""
    settings = {f"{name}-{run.name}": overrides(study, run, content, profiles) for run in study.asked()}
    wanted = {made: effective(content, set_to, f"experiments/{name}.yaml, {made}") for made, set_to in settings.items()}
    return settings, wanted


def overrides(study: Study, run: Run, content: Mapping[str, Any], profiles: Path) -> dict[str, Any]:
    """The dotted keys of params.yaml that a run sets, the later over the earlier: profile, common, its own."""
    profile = params.read_yaml(_profile(profiles, run)) if run.profile else {}
    return dict(_leaves(content, profile)) | study.common | run.overrides


def _profile(profiles: Path, run: Run) -> Path:
    path = profiles / f"{run.profile}.yaml"
    if not path.is_file():
        raise InputError(f"run {run.name}: no profile {run.profile!r} in {profiles}")
    return path


def _leaves(content: Any, overlay: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(content.get(key), Mapping):
            yield from _leaves(content[key], value, f"{above}{key}.")
        else:
            yield above + key, value


def effective(content: Mapping[str, Any], set_to: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The whole of params.yaml with some dotted keys set, checked and normalised; InputError names a wrong key."""
    changed = json.loads(json.dumps(content))
    for key, value in set_to.items():
        section = changed
        *path, last = key.split(".")
        for part in path:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise InputError(f"{name}: {key} is no key of params.yaml: {part} is a value, not a section")
        section[last] = value
    return params.check(changed, name).model_dump(mode="json")


def hydra(value: Any) -> str:
    """A value as `dvc exp run -S key=value` reads it back: text quoted, lists and mappings in one line."""
    if isinstance(value, str):
        # A backslash is itself, but before a quotation mark, where two of them are one.
        return "'" + re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + ("\\'" if end[2] else ""), value) + "'"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(key)}:{hydra(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(hydra, value)) + "]"
    return json.dumps(value)


def _key(key: str) -> str:
    # Keys take no quotation marks.
    return re.sub(r"([\\()\[\]{}:=, ])", r"\\\1", key)


# What DVC has of it.


@dataclass(frozen=True, slots=True)
class Experiment:
    """A run as DVC has it: `state` is done, running, queued, failed or absent; its files are those of `commit`."""

    name: str
    state: str
    commit: str | None = None
    log: Path | None = None


def experiments(wanted: Mapping[str, Mapping[str, Any]], target: str) -> dict[str, Experiment]:
    """For each name, the experiment with the params that are wanted and the code that is here now.

    Of several, one that is done counts before one that runs or waits, and these before one that failed.
    """
    code = code_of(params.read_yaml(Path("dvc.yaml"))["stages"], target)
    found = {name: Experiment(name, "absent") for name in wanted}
    done = [Experiment(ended.name, "done", ended.revision) for ended in mirror.experiments()]
    for made in [*_waiting(), *done]:
        if made.name in wanted and made.commit and _same(made.commit, wanted[made.name], code):
            found[made.name] = made
    return found


def _same(commit: str, wanted: Mapping[str, Any], code: set[str]) -> bool:
    """Whether a commit has these params, and every file of the code as it is here now."""
    try:
        if params.check(params_of(commit), commit).model_dump(mode="json") != wanted:
            return False
    except InputError:
        return False
    changed = set(git.told("diff", "--name-only", commit, "--", "src").splitlines())
    return not changed & code


def _waiting() -> Iterator[Experiment]:
    """The experiments that the queue holds and that did not end well: failed, then queued, then running."""
    queue = _queue()
    held = [(done.entry, "failed") for done in queue.iter_failed()]
    held += [(entry, "queued") for entry in queue.iter_queued()]
    held += [(entry, "running") for entry in queue.iter_active()]
    for entry, state in held:
        started = queue.proc.get(entry.stash_rev)
        yield Experiment(entry.name, state, entry.stash_rev, Path(started.stdout) if started else None)


def code_of(stages: Mapping[str, Any], target: str) -> set[str]:
    """The files under src that a stage of dvc.yaml and all it needs depend on."""
    makers = {_path(out): name for name, stage in stages.items() for out in stage.get("outs", [])}
    code: set[str] = set()
    seen, waiting = {target}, [target]
    while waiting:
        for dep in stages[waiting.pop()].get("deps", []):
            if dep in makers and makers[dep] not in seen:
                seen.add(makers[dep])
                waiting.append(makers[dep])
            elif dep.startswith("src/"):
                # Of a template that params.yaml chooses, all.
                code |= {str(path) for path in Path().glob(re.sub(r"\$\{.*?\}", "*", dep))}
    return code


def _path(out: str | Mapping[str, Any]) -> str:
    return out if isinstance(out, str) else next(iter(out))


def params_of(commit: str) -> dict[str, Any]:
    """The params.yaml of a commit, unchecked."""
    return dict(YAML(typ="safe", pure=True).load(StringIO(shown(commit, "params.yaml"))))


def shown(commit: str, path: str) -> str:
    """A file as a commit has it; InputError where it has none."""
    return git.told("show", f"{commit}:{path}")


def _queue() -> Any:
    from dvc.repo import Repo

    return Repo().experiments.celery_queue


# Queue, run, watch.


def queue(
    study: Study, settings: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Mapping[str, Any]]
) -> dict[str, Experiment]:
    """Queue what is neither done, running nor queued, a failed run anew; returns the experiments as they were before.

    `settings` are the keys that each experiment sets, `wanted` the whole params that come of it.
    """
    held = experiments(wanted, study.target)
    missing = [made.name for made in held.values() if made.state in ("absent", "failed")]
    # What the queue still holds under such a name is an older attempt: other params, other code, or a failure.
    for old in [made for made in _waiting() if made.name in missing and made.state in ("failed", "queued")]:
        _queue().remove([old.commit])
    head = git.told("rev-parse", "HEAD")
    for name in missing:
        values = [word for key, value in settings[name].items() for word in ("-S", f"{key}={hydra(value)}")]
        # What has that name on this commit has other params or code. Not --force: it would run what the cache restores.
        git.told("update-ref", "-d", f"refs/exps/{head[:2]}/{head[2:]}/{name}")
        _dvc("exp", "run", "--queue", "--name", name, *values, study.target)
    return held


def start(jobs: int) -> None:
    """Start as many workers of DVC's queue as are asked for; those that work already count."""
    queue = _queue()
    # A machine or a worker that died leaves an experiment running for ever: it failed.
    while (names := [entry.name for entry in queue.iter_active()]) and not queue.worker_status():
        queue.kill(names)
    _dvc("queue", "start", "--jobs", str(jobs))


def watch(names: Sequence[str], jobs: int, say: Callable[[str], None]) -> None:
    """Say what changes until none of the experiments runs or waits. Workers that died are replaced."""
    began = time.monotonic()
    before = dict.fromkeys(names, "queued")
    for look in itertools.count(1):
        held = {made.name: made for made in _waiting() if made.name in names}
        for number, name in enumerate(names, start=1):
            news = f"{held[name].state}{stage_of(held[name])}" if name in held else "done"
            if before[name] != news:
                minutes, seconds = divmod(int(time.monotonic() - began), 60)
                say(f"{minutes:3}:{seconds:02}  {number}/{len(names)}  {name}  {news}")
            before[name] = news
        if not {"queued", "running"} & {made.state for made in held.values()}:
            return
        if look % LOOKS == 0 and not _queue().worker_status():
            start(jobs)
        time.sleep(PAUSE)


def stage_of(made: Experiment) -> str:
    """`, stage sft` while it runs, by its log."""
    stages = re.findall(r"^Running stage '(.+?)'", _text(made.log), flags=re.MULTILINE)
    return f", stage {stages[-1]}" if stages and made.state == "running" else ""


def reason(made: Experiment) -> str:
    """Why a failed experiment failed: what its log says last, before DVC's own word."""
    text = _text(made.log)
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
