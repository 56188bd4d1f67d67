"""One context manager around MLflow, and its only importer.

MLflow listens: nothing here is read back by a stage, and a tracker that is down, full or broken costs one warning,
never a training run. Every stage's run is the child of one run per pipeline run, and is tagged with what DVC writes of
that stage into dvc.lock: by these tags `emotune mirror` and `emotune link` join the two.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import posixpath
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from emotune.core import git, processes, records
from emotune.core.errors import InputError

if TYPE_CHECKING:
    from mlflow import MlflowClient


DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
LIBRARIES = ("torch", "transformers", "trl", "peft")
# What MLflow 3.17 takes: characters in a param's value and in a name, metrics and params in one request.
MAX_PARAM, MAX_KEY, MAX_METRICS, MAX_PARAMS = 6000, 250, 1000, 100
PIPELINE = "emotune.pipeline"  # the tag of a parent, and its key
PARENT, STAGE, LOCK = "mlflow.parentRunId", "dvc.stage", "dvc.lock"

_failed = False  # the tracker's first failure turns it off for the rest of the process


class Run:
    """The MLflow run of one stage; without a tracker, or after its first failure, every method does nothing."""

    def __init__(self, uri: str = "", client: MlflowClient | None = None, id: str = "", parent: str = "") -> None:
        self._uri, self._client, self._id, self._parent = uri, client, id, parent
        self._steps: dict[str, int] = {}

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add one point to the history of each metric (step 0 where a metric has no history)."""
        self._steps |= dict.fromkeys(metrics, step or 0)
        self._send(lambda client: _log(client, self._id, metrics, dict.fromkeys(metrics, step or 0)))

    def metrics(self, nested: Mapping[str, Any]) -> None:
        """Log every number of a metrics file, as it is written there, under its dotted name.

        Text, lists and booleans are left out. A number with a history becomes its last point: it is what MLflow shows.
        """
        found = numbers(nested)
        steps = {name: self._steps[name] + 1 if name in self._steps else 0 for name in found}
        self._send(lambda client: _log(client, self._id, found, steps))

    def artifact(self, path: Path) -> None:
        """Keep a copy of a file or folder that is worth looking at."""
        self._send(lambda client: client.log_artifact(self._id, str(path)))

    def _name_hashes(self) -> None:
        """Tag the run with what DVC, which waits for this stage to end, will write of it into dvc.lock."""
        if name := os.environ.get("DVC_STAGE"):
            self._send(lambda client: _tag(client, self._id, lock_tags(_entry(name))))

    def _end(self, status: str) -> None:
        def end(client: MlflowClient) -> None:
            client.set_terminated(self._id, status)
            # One failed stage is a failed pipeline, whatever `dvc repro --keep-going` runs after it.
            failed_before = client.get_run(self._parent).info.status == "FAILED"
            client.set_terminated(self._parent, "FAILED" if failed_before else status)

        # Told even to a tracker that failed: it may be back, and a run must not read RUNNING for ever.
        self._send(end, even_if_failed=True)

    def _send(self, call: Callable[[MlflowClient], object], even_if_failed: bool = False) -> None:
        if self._client is not None and (even_if_failed or not _failed):
            with _costs_one_warning(self._uri):
                call(self._client)


@contextmanager
def run(stage: str, params: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[Run]:
    """Track one stage in MLflow: FINISHED when the body ends, FAILED when it raises (the exception goes on, unchanged).

    `params` are logged under dotted names; `inputs` (name -> hash) become tags `input.<name>`. Under DVC, every dep and
    out of a stage that FINISHED is a tag too, `dvc.dep.<path>` or `dvc.out.<path>`, with its hash as in dvc.lock. The
    store is `MLFLOW_TRACKING_URI`, else `mlflow.db` under `DVC_ROOT` (the main checkout even in a DVC temp workspace),
    the git root or the working directory. `EMOTUNE_TRACKING=off` turns it off without importing MLflow.
    """
    live = _open(stage, params, inputs)
    try:
        yield live
    except BaseException:
        live._end("FAILED")
        raise
    live._name_hashes()
    live._end("FINISHED")


def off() -> bool:
    """Whether the user turned tracking off."""
    return os.environ.get("EMOTUNE_TRACKING") == "off"


@contextmanager
def store() -> Iterator[tuple[MlflowClient, str]]:
    """The store that stages write to and its experiment, for a face; InputError where MLflow fails."""
    root = _root()
    uri = _uri(root)
    client = _client(uri)
    from mlflow.exceptions import MlflowException

    try:
        with _locked(root / ".work" / "tracking.lock"):
            experiment = _experiment(client, uri, root)
        yield client, experiment
    except MlflowException as cause:
        raise InputError(_without_password(f"MLflow at {uri}: {' '.join(str(cause).split())[:500]}")) from None


def write(client: MlflowClient, run: str, params: Mapping[str, Any], nested: Mapping[str, Any]) -> None:
    """What a stage logs of its params and its metrics file, for a run that no stage wrote."""
    _log_params(client, run, params)
    found = numbers(nested)
    _log(client, run, found, dict.fromkeys(found, 0))


def numbers(nested: Mapping[str, Any]) -> dict[str, float]:
    """The dotted name of every number in a metrics file, and the number as the file has it."""
    leaves = _leaves(records.rounded(nested))
    return {name: value for name, value in leaves if isinstance(value, int | float) and type(value) is not bool}


def lock_tags(entry: Mapping[str, Any]) -> dict[str, str]:
    """A stage's entry in dvc.lock as tags: the hash of each dep and out, and as `dvc.lock` that of the whole entry."""
    deps, outs = ({row["path"]: row["md5"] for row in entry.get(kind, [])} for kind in ("deps", "outs"))
    whole = {"cmd": entry["cmd"], "deps": deps, "params": entry.get("params", {}), "outs": outs}
    return {
        LOCK: _sha256(whole),
        **{_key(f"dvc.dep.{path}"): md5 for path, md5 in deps.items()},
        **{_key(f"dvc.out.{path}"): md5 for path, md5 in outs.items()},
    }


def _open(stage: str, params: Mapping[str, Any], inputs: Mapping[str, str]) -> Run:
    if off() or _failed or not processes.first():  # one run a stage, not one a process of torchrun
        return Run()
    root = _root()
    uri = _uri(root)
    live = Run()
    with _costs_one_warning(uri):
        shared = _tags_of_the_pipeline()
        key, kind = _pipeline()
        name = os.environ.get("DVC_EXP_NAME") or f"{kind} {shared.get('git.commit', '')[:7]}".strip()
        with _locked(root / ".work" / "tracking.lock"):  # two first stages must not both make the database or a parent
            client = _client(uri)
            experiment = _experiment(client, uri, root)
            parent = _parent(client, experiment, key, name, shared)
        own = {
            PARENT: parent,
            STAGE: stage,
            "params.sha256": _sha256(params),
            **{_key(f"input.{name}"): digest for name, digest in inputs.items()},
        }
        # By id and through a client, not `mlflow.start_run`: an inherited MLFLOW_RUN_ID would make that resume another
        # run instead, and its global tracking URI would leak into the environment of what the stage starts.
        child = client.create_run(experiment, tags=shared | own, run_name=stage)
        live = Run(uri, client, child.info.run_id, parent)
        _log_params(client, live._id, params)
    return live


def _entry(stage: str) -> Mapping[str, Any]:
    """What dvc.lock will say of a stage whose outs are all written, by DVC's own code and cache of hashes."""
    from dvc.repo import Repo
    from dvc.stage.serialize import to_single_stage_lockfile

    with Repo() as repo:
        ended = repo.stage.get_target(stage)
        ended.save(run_cache=False)
        entry: Mapping[str, Any] = to_single_stage_lockfile(ended)
    return entry


def _uri(root: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def _client(uri: str) -> MlflowClient:
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    if uri.startswith("http"):  # a dead server costs seconds and one line, where MLflow tries 7 times and warns of each
        settings |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _experiment(client: MlflowClient, uri: str, root: Path) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "emotune"
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    # Without a location MLflow takes ./mlruns, which in a DVC temp workspace is thrown away. A server has its own.
    is_database = re.split(r"[+:]", uri)[0] in DATABASES
    return client.create_experiment(name, (root / "mlartifacts").as_uri() if is_database else None)


def _parent(client: MlflowClient, experiment: str, key: str, name: str, tags: Mapping[str, str]) -> str:
    found = client.search_runs([experiment], f"tags.`{PIPELINE}` = '{key}'", max_results=1)
    if not found:
        return client.create_run(experiment, tags={**tags, PIPELINE: key}, run_name=name).info.run_id
    parent = found[0].info
    if parent.status != "FAILED":
        client.update_run(parent.run_id, "RUNNING")
    return parent.run_id


def _pipeline() -> tuple[str, str]:
    """A key that the stages of one pipeline run share, and no others: the DVC process above them, else this process."""
    this = psutil.Process()
    dvc = next((process for process in _above(this) if _is_dvc(process)), None)
    owner = dvc or this
    key = f"{platform.node()}-{owner.pid}-{_started(owner)}-{os.environ.get('DVC_EXP_NAME', '')}".rstrip("-")
    return key.replace("'", ""), "dvc repro" if dvc else "by hand"


def _above(process: psutil.Process) -> Iterator[psutil.Process]:
    # Not `parents()`: it compares times of day, and stops at a parent that looks younger once the clock was set.
    with suppress(psutil.Error):
        while above := process.ppid():
            yield (process := psutil.Process(above))


def _started(process: psutil.Process) -> str:
    """When a process started, as a name: on Linux in ticks since boot, which no setting of the clock can shift."""
    stat = Path(f"/proc/{process.pid}/stat")
    return stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else f"{process.create_time():.2f}"


def _is_dvc(process: psutil.Process) -> bool:
    try:
        program, *arguments = process.cmdline() or [""]
    except psutil.Error:
        return False
    if Path(program).name.startswith("python"):
        program = next((argument for argument in arguments if not argument.startswith("-")), "")
    return Path(program).name == "dvc"


def _tags_of_the_pipeline() -> dict[str, str]:
    tags = {
        "dvc.exp.name": os.environ.get("DVC_EXP_NAME"),
        "dvc.exp.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV"),
        "version.python": platform.python_version(),
        **git_tags(),
    }
    for library in LIBRARIES:
        try:
            tags[f"version.{library}"] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {name: value for name, value in tags.items() if value}


def git_tags() -> dict[str, str]:
    """`git.commit`, and in `git.dirty` whether anything differs from it; nothing where there is no commit."""
    commit, changes = git.ask("rev-parse", "HEAD"), git.ask("status", "--porcelain", "--untracked-files=no")
    return {"git.commit": commit, "git.dirty": str(bool(changes)).lower()} if commit else {}


def _root() -> Path:
    here = Path.cwd()
    if root := os.environ.get("DVC_ROOT"):
        return Path(root).absolute()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, by a kill too
        yield


@contextmanager
def _costs_one_warning(uri: str) -> Iterator[None]:
    """The one place where any exception is survived: what fails here is MLflow, and no stage depends on it."""
    global _failed
    try:
        yield
    except Exception as cause:
        if not _failed:
            reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:500]
            warning = f"emotune: MLflow at {uri} failed, the rest of this process is not tracked: {reason}"
            print(_without_password(warning), file=sys.stderr)
        _failed = True


def _without_password(message: str) -> str:
    return re.sub(r"//[^/@ ]*@", "//", message)


def _log(client: MlflowClient, run: str, metrics: Mapping[str, float], steps: Mapping[str, int]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    points = [Metric(_key(name), float(value), now, steps[name]) for name, value in metrics.items()]
    for start in range(0, len(points), MAX_METRICS):
        client.log_batch(run, metrics=points[start : start + MAX_METRICS])


def _log_params(client: MlflowClient, run: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    rows = [Param(_key(name), _text(value)[:MAX_PARAM]) for name, value in _leaves(params)]
    for start in range(0, len(rows), MAX_PARAMS):
        client.log_batch(run, params=rows[start : start + MAX_PARAMS])


def _tag(client: MlflowClient, run: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])


def _leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"sft": {"lora": {"rank": 16}}}` -> `("sft.lora.rank", 16)`."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _key(name: str) -> str:
    """The name itself where MLflow takes it; else one that it takes and that no other name becomes.

    Labels come from data. MLflow takes word characters and / . - : and space, in what is no path but the shortest.
    """
    plain = re.sub(r"[^\w/. :-]", "_", name)
    as_path = posixpath.normpath(plain)
    if plain == name and as_path == name and not name.startswith(("/", "..")) and name != "." and len(name) <= MAX_KEY:
        return name
    return f"{as_path.lstrip('/.')[: MAX_KEY - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
