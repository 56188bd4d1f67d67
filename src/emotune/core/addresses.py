"""URLs as they may be shown: without what lets their reader in."""

import re
from urllib.parse import unquote

URL = re.compile(r"([a-z][\w+.-]*://)(\S+)", re.IGNORECASE)
SECRET = re.compile(r"(pass|pwd|token|secret|key|sig|cred)\w*\s*=", re.IGNORECASE)
MASK = "***"


def without_password(text: str) -> str:
    """A text in which no URL has a user or a password, and the value of `?password=`, `&token=` and their like is ***.

    Of what can be read as a password or as a path, too much is left out rather than too little.
    """
    return URL.sub(lambda url: url[1] + _shown(url[2]), text)


def _shown(rest: str) -> str:
    """What follows `scheme://`, from the host on; the values that a secret's name stands before are masked.

    Not by urlsplit: to it, a password ends where a `/`, `?` or `#` stands in it unescaped, and the host begins before.
    """
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    has_password = ":" in authority.partition("@")[0]
    from_host = rest[(rest if has_password else authority).rfind("@") + 1 :]
    place, *values = re.split("([?&#;])", from_host)
    return place + "".join(
        f"{value.partition('=')[0]}={MASK}" if SECRET.search(unquote(value)) else value for value in values
    )
