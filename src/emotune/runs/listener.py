"""What a stage tells of its run, written to MLflow: `python -m emotune.runs.listener`, which tracking.run starts.

It reads lines of JSON from its stdin: first what the stage is, then points of its metrics, then its end; a pipe that
closes without one is that of a stage that was killed. So MLflow is imported beside the stage, and whatever it does or
fails to do, the stage goes on. What the user has to hear is one line on stdout, which is the stage's stderr.
"""

from __future__ import annotations

import gc
import getpass
import importlib
import json
import math
import os
import platform
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emotune.core import records
from emotune.runs import tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput


SOURCE = "mlflow.source.name"
LIBRARIES = ("torch", "transformers", "trl", "peft")


class Listener:
    """The run of one stage in MLflow; after the first failure it says so, and writes nothing more but the end."""

    def __init__(self) -> None:
        self.has_failed = False
        self._client: MlflowClient | None = None
        self._run = self._parent = ""

    def open(
        self,
        stage: str,
        params: Mapping[str, Any],
        inputs: Mapping[str, str],
        data: Mapping[str, str],
        pipeline: str,
        kind: str,
        at: int,
    ) -> None:
        """Make the run, and its parent where this is the first stage of its pipeline."""
        with self._surviving():
            # Before the seconds that MLflow takes: what git says now is of the code that the stage started with.
            shared = _tags_of_the_pipeline()
            name = os.environ.get("DVC_EXP_NAME") or f"{kind} {shared.get('git.commit', '')[:7]}".strip()
            _import()
            with tracking.locked():
                client, experiment = tracking.connect()
                self._parent = _parent(client, experiment, pipeline, name, {**shared, SOURCE: kind}, at)
            own = {
                tracking.PARENT: self._parent,
                tracking.STAGE: stage,
                SOURCE: f"emotune.runs.stage {stage}",
                "params.sha256": tracking.hash_of(params),
                **{tracking.key(f"input.{name}"): digest for name, digest in inputs.items()},
            }
            # By id and through a client, not `mlflow.start_run`: an inherited MLFLOW_RUN_ID would make that resume
            # another run instead.
            run = client.create_run(experiment, start_time=at, tags=shared | own, run_name=stage)
            self._client, self._run = client, run.info.run_id
            tracking.write_params(client, self._run, params)
            client.log_inputs(self._run, [_data_set(name, Path(path)) for name, path in data.items()])

    def add(self, points: Sequence[tracking.Point]) -> None:
        """Write points of metrics."""
        if self._client and points and not self.has_failed:
            with self._surviving():
                tracking.write_points(self._client, self._run, points)

    def end(self, status: str, at: int) -> None:
        """End the run; one that FINISHED is tagged with what DVC, which waits for the stage, will write of it."""
        if not self._client:
            return
        if status == "FINISHED" and not self.has_failed and "DVC_STAGE" in os.environ:
            with self._surviving():
                _tag(self._client, self._run, tracking.lock_tags(_entry(os.environ["DVC_STAGE"])))
        # Told even to a tracker that failed: it may be back, and a run must not read RUNNING for ever.
        with self._surviving():
            self._client.set_terminated(self._run, status, at)
            # One failed stage is a failed pipeline, whatever `dvc repro --keep-going` runs after it.
            failed_before = self._client.get_run(self._parent).info.status == "FAILED"
            self._client.set_terminated(self._parent, "FAILED" if failed_before else status, at)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """The one place where any exception is survived: what fails here is MLflow, and no stage depends on it."""
        try:
            yield
        except Exception as cause:
            if not self.has_failed:
                print(tracking.warning(f"{type(cause).__name__}: {cause}"), flush=True)
            self.has_failed = True


def listen(pipe: int) -> int:
    """Write what comes through a pipe until it closes; returns the exit code."""
    listener, status, at = Listener(), "FAILED", None
    for messages in _messages(pipe):
        for message in messages:
            if "stage" in message:
                listener.open(**message)
            elif "end" in message:
                status, at = message["end"], message["at"]
        # What came while MLflow was busy is one batch.
        listener.add([tuple(point) for message in messages for point in message.get("points", [])])
    # Whoever waits for it does not wait longer, and nobody waits for that of a stage that was killed.
    signal.alarm(math.ceil(tracking.PATIENCE))
    listener.end(status, at or tracking.now())
    return tracking.HAS_WARNED if listener.has_failed else 0


def _messages(pipe: int) -> Iterator[list[dict[str, Any]]]:
    """The messages in a pipe, those together that came together."""
    rest = b""
    while chunk := os.read(pipe, 1 << 20):
        *lines, rest = (rest + chunk).split(b"\n")
        yield [json.loads(line) for line in lines]


def _import() -> None:
    """Import what takes seconds while the stage works, and look through it for garbage afterwards, not meanwhile."""
    gc.disable()
    tracking.silence()
    importlib.import_module("mlflow")
    if "DVC_STAGE" in os.environ:
        importlib.import_module("dvc.repo")
    gc.enable()


def _parent(client: MlflowClient, experiment: str, pipeline: str, name: str, tags: Mapping[str, str], at: int) -> str:
    found = client.search_runs([experiment], f"tags.`{tracking.PIPELINE}` = '{pipeline}'", max_results=1)
    if not found:
        own = {**tags, tracking.PIPELINE: pipeline}
        return client.create_run(experiment, start_time=at, tags=own, run_name=name).info.run_id
    parent = found[0].info
    if parent.status != "FAILED":
        client.update_run(parent.run_id, "RUNNING")
    return parent.run_id


def _entry(stage: str) -> Mapping[str, Any]:
    """What dvc.lock will say of a stage whose outs are all written, by DVC's own code and cache of hashes."""
    from dvc.repo import Repo
    from dvc.stage.serialize import to_single_stage_lockfile

    # DVC names it by the way to its dvc.yaml from where `dvc` was called, and it runs where that file lies.
    path, _, name = stage.rpartition(":")
    with Repo() as repo:
        ended = repo.stage.get_target(stage if Path(path).is_file() else name)
        ended.save(run_cache=False)
        entry: Mapping[str, Any] = to_single_stage_lockfile(ended)
    return entry


def _data_set(name: str, path: Path) -> DatasetInput:
    """A file that a stage reads, by its content, as what MLflow lists and filters runs by."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": path.as_posix()})
    # Of a sha256, what MLflow's databases have room for.
    data_set = Dataset(name, records.sha256(path)[:32], "local", source)
    return DatasetInput(data_set, [InputTag("mlflow.data.context", path.stem)])


def _tag(client: MlflowClient, run: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])


def _tags_of_the_pipeline() -> dict[str, str]:
    shared = tracking.git_tags()
    tags = {
        "dvc.exp.name": os.environ.get("DVC_EXP_NAME"),
        "dvc.exp.baseline_rev": os.environ.get("DVC_EXP_BASELINE_REV"),
        "version.python": platform.python_version(),
        # MLflow's own columns.
        "mlflow.source.git.commit": shared.get("git.commit"),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        **shared,
    }
    for library in LIBRARIES:
        try:
            tags[f"version.{library}"] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return {name: value for name, value in tags.items() if value}


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, an id that has no name
        return None


if __name__ == "__main__":
    sys.exit(listen(sys.stdin.fileno()))
