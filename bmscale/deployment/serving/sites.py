"""Which web sites' pages may ask, and by which names the server may be called.

A browser sends what any page tells it to. It names the page's site (Origin), which must be the server's own or one that
is allowed; and a site whose name was made to point at this machine (DNS rebinding) shows in Host. Clients that are no
browsers send no Origin.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers

from bmscale.errors import BadInput

_PORTS = {"http": "80", "https": "443"}
_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[^\s/?#@:\[\]*\\]+)(?::([0-9]{1,5}))?")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\s/?#@:\[\]*\\]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True)
class Sites:
    """By default no site but the server's own, whatever that is called."""

    origins: tuple[str, ...] = ()
    """Of other sites, as browsers write them; * is all of them."""
    hosts: tuple[str, ...] | None = None
    """Names beside those of loopback; None is any name."""

    @classmethod
    def of(cls, origins: Sequence[str], hosts: Sequence[str], *, loopback: bool) -> "Sites":
        """What the command line says; a server on `loopback` is only called by its names unless others are given.

        Raises BadInput for what is no origin, or no name of a host.
        """
        named = tuple(_given_host(host) for host in hosts)
        return cls(tuple(_given_origin(origin) for origin in origins), named if named or loopback else None)

    def refusal(self, headers: Headers) -> str | None:
        """Why a request is not answered; None where it is."""
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._has(host):
            return f"Host: must be localhost or a name given by --allow-host; got {host[:80]!r}"
        if origin is None or "*" in self.origins or origin.lower() in self.origins or _is_own(origin, host):
            return None
        return f"Origin: pages of {origin[:80]!r} may not ask here; --allow-origin allows a site"

    def _has(self, host: str) -> bool:
        if self.hosts is None:
            return True
        found = _HOST.fullmatch(host.lower())
        return found is not None and (_is_loopback(found[1]) or found[1] in self.hosts)


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_own(origin: str, host: str | None) -> bool:
    """Whether an origin is the server that was called by this name; a proxy before it may have spoken https."""
    site, called = _ORIGIN.fullmatch(origin.lower()), _HOST.fullmatch((host or "").lower())
    if site is None or called is None or site[1] not in _PORTS:
        return False
    usual = _PORTS[site[1]]
    return (site[2], site[3] or usual) == (called[1], called[2] or usual)


def _given_origin(origin: str) -> str:
    found = _ORIGIN.fullmatch(origin.lower().removesuffix("/"))
    if origin == "*":
        return origin
    if found is None:
        raise BadInput(
            f"--allow-origin: must be * or the scheme and host of a site, such as https://example.org; got {origin!r}"
        )
    scheme, name, port = found.groups()
    return f"{scheme}://{name}" + (f":{port}" if port and port != _PORTS.get(scheme) else "")


def _given_host(host: str) -> str:
    found = _HOST.fullmatch(host.lower())
    if found is None or found[2]:
        raise BadInput(f"--allow-host: must be the name of a host without a port, such as example.org; got {host!r}")
    return found[1]
