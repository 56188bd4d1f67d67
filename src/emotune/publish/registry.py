"""MLflow's model registry: the adapters that were sent to the Hub, a version for each revision there."""

from emotune.core.errors import InputError
from emotune.publish.facts import Facts
from emotune.publish.hub import Repository
from emotune.runs import tracking

# What the version is called that was sent last.
ALIAS = "published"


def register(repository: Repository, revision: str, facts: Facts, stage: str) -> str:
    """Note what a stage made and the Hub has now under `repository`, in the registry of the store that stages write to.

    Once a revision. What it came to is a line for the user: a store without a registry, or none, is no error.
    """
    if tracking.off():
        return "not registered in MLflow: EMOTUNE_TRACKING=off"
    try:
        version = _version(repository, revision, facts, stage)
    except InputError as error:
        return f"not registered in MLflow: {error}"
    return f"version {version} of {repository.name} in MLflow, {ALIAS}"


def _version(repository: Repository, revision: str, facts: Facts, stage: str) -> str:
    name, source = repository.name, Repository(repository.id, revision, repository.kind).url
    release = {"release": facts.tag} if facts.tag else {}
    tags = {"hub.repo": repository.id, "hub.revision": revision, "git.commit": facts.commit, **release}
    with tracking.store() as (client, experiment):
        if not client.search_registered_models(f"name = '{name}'", max_results=1):
            client.create_registered_model(name)
        versions = client.search_model_versions(f"name = '{name}'")
        version = next((one.version for one in versions if one.source == source), None)
        if version is None:
            lock = tracking.lock_tags(facts.lock["stages"][stage])[tracking.LOCK]
            runs = client.search_runs([experiment], f"tags.`{tracking.LOCK}` = '{lock}'", max_results=1)
            run = runs[0].info.run_id if runs else None
            version = client.create_model_version(name, source, run, tags=tags).version
        client.set_registered_model_alias(name, ALIAS, version)
    return str(version)
