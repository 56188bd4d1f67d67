"""URLs as they may be shown: without what lets their reader in."""

import re
from urllib.parse import unquote

URL = re.compile(r"([a-z][\w+.-]*://)(\S+)", re.IGNORECASE)
SECRET = re.compile(r"(pass|pwd|token|secret|key|sig|cred)\w*\s*=", re.IGNORECASE)
MASK = "***"


def without_password(text: str, address: str = "") -> str:
    """A text in which no URL has a user or a password, and the value of `?password=`, `&token=` and their like is ***.

    Where an error quotes a part of `address` alone, the secrets of that address are *** there too. Of what can be read
    as a password or as a path, too much is left out rather than too little.
    """
    shown = URL.sub(lambda url: url[1] + _shown(url[2]), text)
    for _, rest in URL.findall(address):
        for secret in sorted(_secrets(rest), key=len, reverse=True):
            shown = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", MASK, shown)
    return shown


def _parted(rest: str) -> tuple[str, list[str]]:
    """What follows `scheme://`, as user and password, and as the place with all values behind it.

    Not by urlsplit: to it, a password ends where a `/`, `?` or `#` stands in it unescaped, and the host begins before.
    """
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    has_password = ":" in authority.partition("@")[0]
    login, _, from_host = rest.rpartition("@") if has_password else authority.rpartition("@")
    return login, re.split("([?&#;])", from_host if has_password else from_host + rest[len(authority) :])


def _shown(rest: str) -> str:
    """From the host on; the values that a secret's name stands before are masked."""
    _, (place, *values) = _parted(rest)
    return place + "".join(
        f"{value.partition('=')[0]}={MASK}" if SECRET.search(unquote(value)) else value for value in values
    )


def _secrets(rest: str) -> set[str]:
    """A password and the masked values: as they stand there, unescaped, and in pieces that a parser makes of them."""
    login, (_, *values) = _parted(rest)
    wholes = [login.partition(":")[2] or login, *(v.partition("=")[2] for v in values if SECRET.search(unquote(v)))]
    return {secret for whole in wholes for secret in (whole, unquote(whole), *re.split("[/?#@:]", whole)) if secret}
