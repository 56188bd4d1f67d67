"""MLflow's model registry: what was sent to the Hub, a version for each revision there."""

from emotune.core.addresses import without_password
from emotune.publish.facts import Run
from emotune.publish.hub import Repository
from emotune.runs import tracking

# What the version is called that was sent last.
ALIAS = "published"


def register(part: str, revision: str, facts: Run) -> str:
    """Note a part that the Hub has now in the registry of the store that stages write to, once a revision.

    What came of it is a line for the user: a store without a registry is no error, nor is one that fails.
    """
    if tracking.off():
        return "not registered in MLflow: EMOTUNE_TRACKING=off"
    try:
        version = _version(part, revision, facts)
    # What fails here is MLflow, in as many ways as there are stores, and all is sent.
    except Exception as cause:
        reason = f"not registered in MLflow: {type(cause).__name__}: {' '.join(str(cause).split())[:500]}"
        return without_password(reason, tracking.uri())
    return f"version {version} of {facts.repositories[part].name} in MLflow, {ALIAS}"


def _version(part: str, revision: str, facts: Run) -> str:
    there = facts.repositories[part]
    source = Repository(there.id, revision, there.kind).url
    release = {"release": facts.tag} if facts.tag else {}
    tags = {"hub.repo": there.id, "hub.revision": revision, "git.commit": facts.commit, **release}
    with tracking.store() as (client, experiment):
        if not client.search_registered_models(f"name = '{there.name}'", max_results=1):
            client.create_registered_model(there.name)
        versions = client.search_model_versions(f"name = '{there.name}'")
        version = next((one.version for one in versions if one.source == source), None)
        if version is None:
            lock = tracking.lock_tags(facts.lock["stages"][facts.stages[part]])[tracking.LOCK]
            runs = client.search_runs([experiment], f"tags.`{tracking.LOCK}` = '{lock}'", max_results=1)
            run = runs[0].info.run_id if runs else None
            version = client.create_model_version(there.name, source, run, tags=tags).version
        client.set_registered_model_alias(there.name, ALIAS, version)
    return str(version)
