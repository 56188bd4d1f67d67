"""git, asked about the working directory: by whoever needs an answer, or can do without."""

import subprocess

from emotune.core.errors import InputError


def ask(*arguments: str) -> str | None:
    """What git prints, without the last line's end; None where there is no git, no repository or no answer."""
    try:
        return told(*arguments)
    except InputError:
        return None


def told(*arguments: str) -> str:
    """What git prints, without the last line's end; InputError with git's own words where it fails."""
    return run(*arguments).decode("utf-8", "replace").rstrip("\n")


def run(*arguments: str) -> bytes:
    """The bytes that git prints; InputError with git's own words where it fails."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise InputError(f"git {' '.join(arguments)}: {error.stderr.decode('utf-8', 'replace').strip()}") from None
    except OSError as error:
        raise InputError(f"git {' '.join(arguments)}: {error}") from None
