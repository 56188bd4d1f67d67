"""dvc.lock and the metrics files, mirrored in MLflow: a run for each stage that DVC restored or skipped.

No code of ours runs then, so a command has to look afterwards. It reads git, dvc.lock and MLflow, and writes MLflow
alone. What joins them is the hash of a stage's entry in dvc.lock, which a stage's run has as its tag `dvc.lock`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from emotune.core import git, records
from emotune.core.errors import InputError
from emotune.runs import tracking
from emotune.runs.tracking import LOCK, PARENT, PIPELINE, STAGE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


EXPERIMENTS = "refs/exps"
NAME, REVISION = "dvc.exp.name", "dvc.exp.rev"
CACHED, ORIGINAL = "dvc.cached", "dvc.cached.run"

Entries = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Experiment:
    """A finished DVC experiment: its name, its own commit, and the commit it started from."""

    name: str
    revision: str
    baseline: str


@dataclass(frozen=True)
class Family:
    """The MLflow run of a pipeline, its children, and of each stage that ended well under DVC the newest of them."""

    parent: Run
    children: list[Run] = field(default_factory=list)
    stages: dict[str, Run] = field(default_factory=dict)

    @property
    def name(self) -> str | None:
        """That of the DVC experiment whose pipeline it is; None where it is of none."""
        return self.parent.data.tags.get(NAME)

    def locks(self) -> dict[str, str]:
        """The hash of each stage's entry in dvc.lock."""
        return {stage: run.data.tags[LOCK] for stage, run in self.stages.items()}

    def fits(self, locks: Mapping[str, str]) -> bool:
        """Whether it has stages, and each of them is what these locks say."""
        return bool(self.stages) and self.locks().items() <= locks.items()


@dataclass(frozen=True)
class Pipeline:
    """What dvc.lock says at a commit, or (`revision` None) in the working tree, and how MLflow names a run of it."""

    revision: str | None
    name: str
    tags: Mapping[str, str]
    entries: Entries


@dataclass(frozen=True)
class _Store:
    """An experiment of MLflow, and the pipelines in it, the newest first."""

    client: MlflowClient
    experiment_id: str
    families: list[Family]

    def complete(self, pipeline: Pipeline, own: Sequence[Family]) -> Iterator[str]:
        """Give the pipeline a family with every stage: the best of `own` that fits, else a new one; a line for each."""
        fitting = [family for family in own if family.fits(locks(pipeline.entries))]
        family = max(fitting, key=lambda family: len(family.stages) == len(pipeline.entries), default=None)
        missing = [stage for stage in pipeline.entries if not family or stage not in family.stages]
        measured = {stage: metrics for stage in missing if (metrics := _metrics(pipeline, stage)) is not None}
        if measured:
            family = family or self._new(pipeline)
            for stage, metrics in measured.items():
                family.stages[stage] = self._child(pipeline, family, stage, metrics)
            yield f"{pipeline.name}: {', '.join(measured)}"
        for stage in missing:
            if stage not in measured:
                yield f"{pipeline.name}: {stage} is left out: its metrics file is not the one that dvc.lock names"
        if family and pipeline.revision and len(measured) == len(missing):
            self.client.set_tag(family.parent.info.run_id, REVISION, pipeline.revision)

    def _new(self, pipeline: Pipeline) -> Family:
        state = hashlib.sha256(json.dumps(locks(pipeline.entries), sort_keys=True).encode()).hexdigest()
        tags = {**pipeline.tags, PIPELINE: f"mirror-{pipeline.revision or state}"}
        parent = self.client.create_run(self.experiment_id, tags=tags, run_name=pipeline.name)
        self.client.set_terminated(parent.info.run_id)
        self.families.insert(0, Family(parent))
        return self.families[0]

    def _child(self, pipeline: Pipeline, family: Family, stage: str, metrics: Mapping[str, Any]) -> Run:
        """The run of a stage that no process ran, and in its description a link to the run of the one that did."""
        entry = pipeline.entries[stage]
        tags = {**pipeline.tags, **tracking.lock_tags(entry), PARENT: family.parent.info.run_id, STAGE: stage}
        note = "DVC restored or skipped this stage, so nothing ran: its metrics are those of the metrics file"
        if original := self._original(stage, tags[LOCK]):
            tags |= {ORIGINAL: original}
            note += f", which [run {original}](#/experiments/{self.experiment_id}/runs/{original}) wrote."
        else:
            note += ". The run that wrote it is not in this store."
        tags |= {CACHED: "true", "mlflow.note.content": note}
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=stage).info.run_id
        tracking.write(self.client, run, entry.get("params", {}).get("params.yaml", {}), metrics)
        self.client.set_terminated(run)  # the last thing: a run that was not written whole does not count as one
        return self.client.get_run(run)

    def _original(self, stage: str, lock: str) -> str | None:
        """The newest run in which a process wrote what dvc.lock says of a stage."""
        runs = (family.stages[stage] for family in self.families if stage in family.stages)
        ids = (run.info.run_id for run in runs if run.data.tags[LOCK] == lock and CACHED not in run.data.tags)
        return next(ids, None)


def mirror(client: MlflowClient, experiment_id: str) -> Iterator[str]:
    """Write the runs that MLflow lacks, for every DVC experiment and for the working tree; yields a line for each.

    A pipeline lacks nothing that has, in one family, a run for each stage: so a second call writes nothing.
    """
    store = _Store(client, experiment_id, families(client, experiment_id))
    complete = {family.parent.data.tags.get(REVISION) for family in store.families}
    for experiment in experiments():
        name, revision, baseline = experiment.name, experiment.revision, experiment.baseline
        if revision not in complete:
            tags = {NAME: name, "dvc.exp.baseline_rev": baseline, "git.commit": baseline}
            own = [family for family in store.families if family.name == name]
            yield from store.complete(Pipeline(revision, name, tags, entries(revision)), own)
    tags = tracking.git_tags()
    name = f"dvc repro {tags.get('git.commit', '')[:7]}".strip()
    yield from store.complete(Pipeline(None, name, tags, entries(None)), store.families)


def experiments() -> list[Experiment]:
    """Every finished experiment of DVC, on any commit, the oldest first, by the references it leaves in git."""
    finished = []
    refs = git.ask("for-each-ref", "--sort=committerdate", "--format=%(objectname) %(refname)", EXPERIMENTS)
    for line in (refs or "").splitlines():
        revision, reference = line.split(" ", 1)
        parts = reference.removeprefix(f"{EXPERIMENTS}/").split("/")
        if len(parts) == 3 and len(parts[0] + parts[1]) == 40:  # DVC keeps its queue there too
            finished.append(Experiment(parts[2], revision, parts[0] + parts[1]))
    return finished


def families(client: MlflowClient, experiment_id: str) -> list[Family]:
    """All pipelines in an experiment of MLflow, the newest first."""
    runs = list(_runs(client, experiment_id))
    by_parent = {run.info.run_id: Family(run) for run in runs if PIPELINE in run.data.tags}
    for run in runs:
        tags = run.data.tags
        if family := by_parent.get(tags.get(PARENT, "")):
            family.children.append(run)
            if LOCK in tags and run.info.status == "FINISHED":
                family.stages.setdefault(tags[STAGE], run)
    return list(by_parent.values())


def entries(revision: str | None) -> Entries:
    """The stages in a commit's dvc.lock (None: the working tree's) that read what the stages before them wrote last.

    Where `dvc repro` was stopped, those that follow are still of the older state, and are left out.
    """
    stages: Entries = yaml_of(revision, "dvc.lock").get("stages", {})
    written = {out["path"]: (out["md5"], stage) for stage, entry in stages.items() for out in entry.get("outs", [])}

    def current(stage: str) -> bool:
        inputs = [
            (dep["md5"], *written[dep["path"]]) for dep in stages[stage].get("deps", []) if dep["path"] in written
        ]
        return all(read == left and current(writer) for read, left, writer in inputs)

    return {stage: entry for stage, entry in stages.items() if current(stage)}


def locks(stages: Entries) -> dict[str, str]:
    """The hash of each stage's entry, as its run in MLflow has it."""
    return {stage: tracking.lock_tags(entry)[LOCK] for stage, entry in stages.items()}


def _metrics(pipeline: Pipeline, stage: str) -> dict[str, Any] | None:
    """The metrics that the stage wrote; None where their file does not have the bytes that dvc.lock names.

    The first file that dvc.yaml names has them all; the headline, where a stage has one, is taken from there.
    """
    declared = yaml_of(pipeline.revision, "dvc.yaml").get("stages", {}).get(stage, {}).get("metrics", [])
    if not declared:
        return {}
    path = next(iter([declared[0]] if isinstance(declared[0], str) else declared[0]))
    hashes = {out["path"]: out["md5"] for out in pipeline.entries[stage].get("outs", [])}
    content = _content(pipeline.revision, path)
    if content is None or hashlib.md5(content, usedforsecurity=False).hexdigest() != hashes.get(path):
        return None
    return records.metrics_in(json.loads(content))


def _runs(client: MlflowClient, experiment_id: str) -> Iterator[Run]:
    """Every run, the newest first."""
    token = None
    while page := client.search_runs([experiment_id], max_results=1000, page_token=token):
        yield from page
        if not (token := page.token):
            return


def yaml_of(revision: str | None, path: str) -> dict[str, Any]:
    """A YAML file in a commit, or in the working tree; empty where there is none."""
    try:
        return YAML(typ="safe", pure=True).load((_content(revision, path) or b"").decode("utf-8")) or {}
    except YAMLError as error:
        where = f"{path} of {revision or 'the working tree'}"
        raise InputError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def _content(revision: str | None, path: str) -> bytes | None:
    """A file in a commit, or in the working tree."""
    if revision is None:
        return Path(path).read_bytes() if Path(path).is_file() else None
    try:
        return git.run("show", f"{revision}:./{path}")
    except InputError:
        return None
