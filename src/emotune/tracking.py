"""One context manager around MLflow, and its only importer.

MLflow listens: nothing here is read back by a stage, and a tracker that is down, full or broken costs one warning,
never a training run. Every stage's run is the child of one run per pipeline run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from emotune import launch

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
LIBRARIES = ("torch", "transformers", "trl", "peft")
MAX_PARAM, MAX_KEY = 6000, 250  # what MLflow 3.17 takes in a param's value and in a name

_failed = False  # the tracker's first failure turns it off for the rest of the process


class Run:
    """The MLflow run of one stage; without a tracker, or after its first failure, every method does nothing."""

    def __init__(self, uri: str = "", client: MlflowClient | None = None, id: str = "", parent: str = "") -> None:
        self._uri, self._client, self._id, self._parent = uri, client, id, parent

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add one point to the history of each metric (step 0 where a metric has no history)."""
        self._send(lambda client: client.log_batch(self._id, metrics=_points(metrics, step or 0)))

    def metrics(self, nested: Mapping[str, Any]) -> None:
        """Log every number of a metrics file under its dotted name; text, lists and booleans are left out."""
        self.log({name: value for name, value in _leaves(nested) if type(value) in (int, float)})

    def artifact(self, path: Path) -> None:
        """Keep a copy of a file or folder that is worth looking at."""
        self._send(lambda client: client.log_artifact(self._id, str(path)))

    def _params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        rows = [Param(_key(name), _text(value)[:MAX_PARAM]) for name, value in _leaves(params)]
        self._send(lambda client: client.log_batch(self._id, params=rows))

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

    `params` are logged under dotted names; `inputs` (name of a dep -> its hash) become tags `dvc.dep.<name>`. The store
    is `MLFLOW_TRACKING_URI`, else `mlflow.db` under `DVC_ROOT` (the main checkout even in a DVC temp workspace), the
    git root or the working directory. `EMOTUNE_TRACKING=off` turns it off without importing MLflow.
    """
    live = _open(stage, params, inputs)
    try:
        yield live
    except BaseException:
        live._end("FAILED")
        raise
    live._end("FINISHED")


def _open(stage: str, params: Mapping[str, Any], inputs: Mapping[str, str]) -> Run:
    off = os.environ.get("EMOTUNE_TRACKING") == "off"
    if off or _failed or not launch.first():  # one run a stage, not one a process of torchrun
        return Run()
    root = _root()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"
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
            "mlflow.parentRunId": parent,
            "dvc.stage": stage,
            "params.sha256": hashlib.sha256(json.dumps(params, sort_keys=True).encode()).hexdigest(),
            **{_key(f"dvc.dep.{dep}"): digest for dep, digest in inputs.items()},
        }
        # By id and through a client, not `mlflow.start_run`: an inherited MLFLOW_RUN_ID would make that resume another
        # run instead, and its global tracking URI would leak into the environment of what the stage starts.
        child = client.create_run(experiment, tags=shared | own, run_name=stage)
        live = Run(uri, client, child.info.run_id, parent)
        live._params(params)
    return live


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
    found = client.search_runs([experiment], f"tags.`emotune.pipeline` = '{key}'", max_results=1)
    if not found:
        return client.create_run(experiment, tags={**tags, "emotune.pipeline": key}, run_name=name).info.run_id
    parent = found[0].info
    if parent.status != "FAILED":
        client.update_run(parent.run_id, "RUNNING")
    return parent.run_id


def _pipeline() -> tuple[str, str]:
    """A key that the stages of one pipeline run share, and no others: the DVC process above them, else this process."""
    this = psutil.Process()
    dvc = next((process for process in this.parents() if _is_dvc(process)), None)
    owner = dvc or this
    # Seconds since boot, not the time of day: that shifts when the clock is set during a long run.
    started = owner.create_time() - psutil.boot_time()
    key = f"{platform.node()}-{owner.pid}-{started:.2f}-{os.environ.get('DVC_EXP_NAME', '')}".rstrip("-")
    return key.replace("'", ""), "dvc repro" if dvc else "by hand"


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
        "git.commit": _git("rev-parse", "HEAD"),
        "version.python": platform.python_version(),
    }
    changes = _git("status", "--porcelain", "--untracked-files=no")
    if changes is not None:
        tags["git.dirty"] = str(bool(changes)).lower()
    for library in LIBRARIES:
        try:
            tags[f"version.{library}"] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {name: value for name, value in tags.items() if value}


def _git(*arguments: str) -> str | None:
    """What git says about the working directory; None where there is no git, no repository or no commit."""
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


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
            print(re.sub(r"//[^/@ ]*@", "//", warning), file=sys.stderr)  # no password in a log
        _failed = True


def _points(metrics: Mapping[str, float], step: int) -> list[Any]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(_key(name), float(value), now, step) for name, value in metrics.items()]


def _leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"sft": {"lora": {"rank": 16}}}` -> `("sft.lora.rank", 16)`."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _key(name: str) -> str:
    # Labels come from data; MLflow takes word characters and / . - : and space.
    return re.sub(r"[^\w/. :-]", "_", name)[:MAX_KEY]
