"""MLflow: what a stage tells it, and the store as the faces read it.

MLflow listens: nothing here is read back by a stage, and a tracker that is down, full, broken or hanging costs one
warning, never a training run. So a stage does not even import it. It writes lines to a process of its own, the listener
(`emotune.runs.listener`), and waits for that at its end, for a while. Every stage's run is the child of one run per
pipeline run, and is tagged with what DVC writes of that stage into dvc.lock: by these tags `emotune mirror` and
`emotune link` join the two.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import posixpath
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emotune.core import git, processes, records
from emotune.core.addresses import without_password
from emotune.core.errors import InputError
from emotune.core.nested import leaves

if TYPE_CHECKING:
    import psutil
    from mlflow import MlflowClient


DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
# What MLflow 3.17 takes: characters in a param's value and in a name, metrics and params in one request.
MAX_PARAM, MAX_KEY, MAX_METRICS, MAX_PARAMS = 6000, 250, 1000, 100
PIPELINE = "emotune.pipeline"  # the tag of a parent, and its key
PARENT, STAGE, LOCK = "mlflow.parentRunId", "dvc.stage", "dvc.lock"
# Seconds that a stage waits at its end for its listener; bytes that it keeps for one that does not read.
PATIENCE, BACKLOG = 60.0, 1 << 26
# The exit code of a listener that has told the user itself what is wrong.
HAS_WARNED = 3

# A metric's name, value and step, and when it was told, in milliseconds since 1970.
Point = tuple[str, float, int, int]

_failed = False  # the tracker's first failure turns it off for the rest of the process


class Run:
    """The MLflow run of one stage, as its listener is told of it; without a listener every method does nothing."""

    def __init__(self, listener: subprocess.Popen[bytes] | None = None) -> None:
        self._listener = listener
        self._unsent = bytearray()
        self._steps: dict[str, int] = {}

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add one point to the history of each metric (step 0 where a metric has no history)."""
        self._steps |= dict.fromkeys(metrics, step or 0)
        self._add(metrics, dict.fromkeys(metrics, step or 0))

    def metrics(self, nested: Mapping[str, Any]) -> None:
        """Log every number of a metrics file, as it is written there, under its dotted name.

        Text, lists and booleans are left out. A number with a history becomes its last point: it is what MLflow shows.
        """
        self._add(numbers(nested), {name: step + 1 for name, step in self._steps.items()})

    def _add(self, metrics: Mapping[str, float], steps: Mapping[str, int]) -> None:
        with _surviving():
            if points := [(name, float(value), steps.get(name, 0), now()) for name, value in metrics.items()]:
                self._tell(points=points)

    def _end(self, status: str) -> None:
        """Tell the end, and wait until it is written."""
        deadline = time.monotonic() + PATIENCE
        with _surviving():
            self._tell(end=status, at=now())
            while self._unsent and (left := deadline - time.monotonic()) > 0:
                select.select([], [self._pipe()], [], left)
                self._send()
            self._part(deadline)

    def _tell(self, **message: Any) -> None:
        # Whoever has left so much unread has been hanging for long, and is waited for in vain at the end.
        if self._listener and (len(self._unsent) < BACKLOG or "end" in message):
            self._unsent += f"{json.dumps(message)}\n".encode()
            self._send()

    def _send(self) -> None:
        """What the pipe takes at once: a stage waits for nobody, and what is left goes with what follows."""
        try:
            while self._unsent:
                del self._unsent[: os.write(self._pipe(), self._unsent)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._part(time.monotonic() + 1)

    def _part(self, deadline: float) -> None:
        """Close the pipe, at which a listener ends; one that has not at the deadline is killed."""
        listener, self._listener, self._unsent = self._listener, None, bytearray()
        if listener is None:
            return
        assert listener.stdin
        listener.stdin.close()
        try:
            code = listener.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            listener.kill()
            listener.wait()
            _give_up(f"no answer {PATIENCE:.0f} s after the stage's end")
        else:
            if code:
                _give_up("" if code == HAS_WARNED else f"its process ended with exit code {code}")

    def _pipe(self) -> int:
        assert self._listener
        assert self._listener.stdin
        return self._listener.stdin.fileno()


@contextmanager
def run(
    stage: str, params: Mapping[str, Any], inputs: Mapping[str, str], data: Mapping[str, Path] | None = None
) -> Iterator[Run]:
    """Track one stage in MLflow: FINISHED when the body ends, FAILED when it raises (the exception goes on, unchanged).

    A stage that is killed is FAILED, too. `params` are logged under dotted names; `inputs` (name -> hash) become tags
    `input.<name>`; `data` (name -> file) are its data sets. Under DVC, every dep and out of a stage that FINISHED is a
    tag too, `dvc.dep.<path>` or `dvc.out.<path>`, with its hash as in dvc.lock. The store is `MLFLOW_TRACKING_URI`,
    else `mlflow.db` under `DVC_ROOT` (the main checkout even in a DVC temp workspace), the git root or the working
    directory.
    `EMOTUNE_TRACKING=off` turns it off without starting any process.
    """
    live = _open(stage, params, inputs, data or {})
    try:
        yield live
    except BaseException:
        live._end("FAILED")
        raise
    live._end("FINISHED")


def off() -> bool:
    """Whether the user turned tracking off."""
    return os.environ.get("EMOTUNE_TRACKING") == "off"


def _open(stage: str, params: Mapping[str, Any], inputs: Mapping[str, str], data: Mapping[str, Path]) -> Run:
    live = Run()
    if off() or _failed or not processes.first():  # one run a stage, not one a process of torchrun
        return live
    with _surviving():
        pipeline, kind = _pipeline()
        live = Run(_listener())
        files = {name: str(path) for name, path in data.items()}
        live._tell(stage=stage, params=params, inputs=inputs, data=files, pipeline=pipeline, kind=kind, at=now())
    return live


def _listener() -> subprocess.Popen[bytes]:
    """A process that writes to MLflow what it reads, and has nothing else in common with this one.

    What stops the stage does not stop it: it has to write that the stage was stopped. What it says on stdout is for the
    user; what MLflow and its kin say on stderr is not.
    """
    command = [sys.executable, "-m", "emotune.runs.listener"]
    listener = subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=2, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert listener.stdin
    os.set_blocking(listener.stdin.fileno(), False)
    return listener


@contextmanager
def _surviving() -> Iterator[None]:
    """The one place of a stage where any exception is survived: no stage depends on what is told here."""
    try:
        yield
    except Exception as cause:
        _give_up(f"{type(cause).__name__}: {cause}")


def _give_up(reason: str) -> None:
    """Tell the user once, where there is a reason, that the rest is not tracked."""
    global _failed
    if reason and not _failed:
        print(warning(reason), file=sys.stderr)
    _failed = True


def warning(reason: str) -> str:
    """The one line that a tracker costs which fails."""
    reason = " ".join(reason.split())[:500]
    told = f"emotune: MLflow at {uri()} failed, the rest of this process is not tracked: {reason}"
    return without_password(told, uri())


def _pipeline() -> tuple[str, str]:
    """A key that the stages of one pipeline run share, and no others: the DVC process above them, else this process."""
    import psutil

    this = psutil.Process()
    dvc = next((process for process in _above(this) if _is_dvc(process)), None)
    owner = dvc or this
    key = f"{platform.node()}-{owner.pid}-{_started(owner)}-{os.environ.get('DVC_EXP_NAME', '')}".rstrip("-")
    return key.replace("'", ""), "dvc repro" if dvc else "by hand"


def _above(process: psutil.Process) -> Iterator[psutil.Process]:
    import psutil

    # Not `parents()`: it compares times of day, and stops at a parent that looks younger once the clock was set.
    with suppress(psutil.Error):
        while above := process.ppid():
            yield (process := psutil.Process(above))


def _started(process: psutil.Process) -> str:
    """When a process started, as a name: on Linux in ticks since boot, which no setting of the clock can shift."""
    stat = Path(f"/proc/{process.pid}/stat")
    return stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else f"{process.create_time():.2f}"


def _is_dvc(process: psutil.Process) -> bool:
    import psutil

    try:
        program, *arguments = process.cmdline() or [""]
    except psutil.Error:
        return False
    if Path(program).name.startswith("python"):
        program = next((argument for argument in arguments if not argument.startswith("-")), "")
    return Path(program).name == "dvc"


@contextmanager
def store() -> Iterator[tuple[MlflowClient, str]]:
    """The store that stages write to and its experiment, for a face; InputError where MLflow fails."""
    silence()
    from mlflow.exceptions import MlflowException

    try:
        with locked():
            opened = connect()
        yield opened
    except MlflowException as cause:
        reason = " ".join(str(cause).split())[:500]
        raise InputError(without_password(f"MLflow at {uri()}: {reason}", uri())) from None


def write(client: MlflowClient, run: str, params: Mapping[str, Any], nested: Mapping[str, Any]) -> None:
    """What a stage logs of its params and its metrics file, for a run that no stage wrote."""
    write_params(client, run, params)
    write_points(client, run, [(name, value, 0, now()) for name, value in numbers(nested).items()])


def numbers(nested: Mapping[str, Any]) -> dict[str, float]:
    """The dotted name of every number in a metrics file, and the number as the file has it."""
    named = leaves(records.rounded(nested))
    return {name: value for name, value in named if isinstance(value, int | float) and type(value) is not bool}


def lock_tags(entry: Mapping[str, Any]) -> dict[str, str]:
    """A stage's entry in dvc.lock as tags: the hash of each dep and out, and as `dvc.lock` that of the whole entry."""
    deps, outs = ({row["path"]: row["md5"] for row in entry.get(kind, [])} for kind in ("deps", "outs"))
    whole = {"cmd": entry["cmd"], "deps": deps, "params": entry.get("params", {}), "outs": outs}
    return {
        LOCK: hash_of(whole),
        **{key(f"dvc.dep.{path}"): md5 for path, md5 in deps.items()},
        **{key(f"dvc.out.{path}"): md5 for path, md5 in outs.items()},
    }


def git_tags() -> dict[str, str]:
    """`git.commit`, and in `git.dirty` whether anything differs from it; nothing where there is no commit."""
    commit, changes = git.ask("rev-parse", "HEAD"), git.ask("status", "--porcelain", "--untracked-files=no")
    return {"git.commit": commit, "git.dirty": str(bool(changes)).lower()} if commit else {}


def silence() -> None:
    """Before MLflow is imported: it tells nobody anything but what it is asked."""
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    # A dead server costs seconds and one line, where MLflow tries 7 times and warns of each.
    if uri().startswith("http"):
        settings |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def connect() -> tuple[MlflowClient, str]:
    """A client of the store and the id of our experiment there, both made where there are none yet."""
    silence()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri())
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "emotune"
    if experiment := client.get_experiment_by_name(name):
        return client, experiment.experiment_id
    # Without a location MLflow takes ./mlruns, which in a DVC temp workspace is thrown away. A server has its own.
    is_database = re.split(r"[+:]", uri())[0] in DATABASES
    return client, client.create_experiment(name, (processes.root() / "mlartifacts").as_uri() if is_database else None)


def uri() -> str:
    """Where the store is, as MLflow calls it."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{processes.root() / 'mlflow.db'}"


@contextmanager
def locked() -> Iterator[None]:
    """Alone among ours: two that come first must not both make the database, the experiment or a parent."""
    import fcntl

    path = processes.work("tracking.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, by a kill too
        yield


def write_points(client: MlflowClient, run: str, points: Sequence[Point]) -> None:
    """Add points to the histories of metrics, in as few requests as MLflow takes."""
    from mlflow.entities import Metric

    metrics = [Metric(key(name), float(value), at, step) for name, value, step, at in points]
    for start in range(0, len(metrics), MAX_METRICS):
        client.log_batch(run, metrics=metrics[start : start + MAX_METRICS])


def write_params(client: MlflowClient, run: str, params: Mapping[str, Any]) -> None:
    """Nested params under their dotted names, each as its text."""
    from mlflow.entities import Param

    rows = [Param(key(name), _text(value)[:MAX_PARAM]) for name, value in leaves(params)]
    for start in range(0, len(rows), MAX_PARAMS):
        client.log_batch(run, params=rows[start : start + MAX_PARAMS])


def now() -> int:
    """The time of day as MLflow has it: milliseconds since 1970."""
    return int(time.time() * 1000)


def hash_of(value: Any) -> str:
    """The sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def key(name: str) -> str:
    """The name itself where MLflow takes it; else one that it takes and that no other name becomes.

    Labels come from data. MLflow takes word characters and / . - : and space, in what is no path but the shortest.
    """
    plain = re.sub(r"[^\w/. :-]", "_", name)
    as_path = posixpath.normpath(plain)
    if plain == name and as_path == name and not name.startswith(("/", "..")) and name != "." and len(name) <= MAX_KEY:
        return name
    return f"{as_path.lstrip('/.')[: MAX_KEY - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
