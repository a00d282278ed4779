"""Proxies: servers of this machine are asked without one, so that no proxy's variable matters unless a server elsewhere is asked."""

from __future__ import annotations

import ipaddress
import os
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

NO_PROXY = ("no_proxy", "NO_PROXY")
PROXIES = tuple(name for scheme in ("all", "http", "https") for name in (f"{scheme}_proxy", f"{scheme}_PROXY".upper()))
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SERVERS = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
SOCKS = ("socksio", "socks")  # the packages by which httpx (Prefect) and requests (MLflow) speak SOCKS
OFFLINE = "HF_HUB_OFFLINE"


def keep_loopback_direct() -> None:
    """Name this machine in NO_PROXY, beside what the user names there: a proxy elsewhere cannot reach our servers.

    Both spellings are set, since urllib, httpx (Prefect) and requests (MLflow) prefer the small one and others know one only.
    httpx fails at what it cannot read in any of these variables, whatever it is asked for. So that is left out; whoever has a
    proxy that cannot be used does not want to be seen without one, and downloads are off.
    """
    named = [_readable(part.strip()) for name in NO_PROXY for part in os.environ.get(name, "").split(",")]
    together = ",".join(dict.fromkeys((*filter(None, named), *LOOPBACK)))
    for name in NO_PROXY:
        if os.environ.get(name) != together:
            os.environ[name] = together
    if not _asked_elsewhere():
        for name in _unusable():
            del os.environ[name]
            os.environ.setdefault(OFFLINE, "1")


def proxy_problems() -> list[str]:
    """A line for each proxy's variable that cannot be used, where a server elsewhere is asked through it."""
    keep_loopback_direct()
    elsewhere = ", ".join(_asked_elsewhere())
    remedy = f"give http://HOST:PORT, or unset it, or name the hosts of {elsewhere} in NO_PROXY"
    return [
        f"{name}={os.environ[name]}: is no proxy that can be used here: {remedy}" for name in _unusable() if elsewhere
    ]


def _asked_elsewhere() -> list[str]:
    """The variables that name a server which is asked through a proxy."""
    return [
        name for name in SERVERS if (host := _host(os.environ.get(name, ""))) and not proxy_bypass(host)
    ]


def _host(address: str) -> str:
    """The host of a server elsewhere; empty for this machine, and for what is no such address."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError:
        return ""
    return "" if parts.scheme not in ("http", "https") or host in LOOPBACK or host.startswith("127.") else host


def _unusable() -> list[str]:
    return [name for name in PROXIES if os.environ.get(name) and not _usable(os.environ[name])]


def _usable(proxy: str) -> bool:
    """Whether both httpx and requests can ask through it."""
    import httpx

    try:
        scheme, host, _ = (
            (url := httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}").url).scheme,
            url.host,
            url.port,
        )
    except (httpx.InvalidURL, ValueError):
        return False
    return bool(host) and (scheme in ("http", "https") or all(map(find_spec, SOCKS)))


def _readable(part: str) -> str:
    """An entry of NO_PROXY as httpx reads it; empty where it cannot, as networks of IPv6 and much that is misspelt."""
    host = part.strip("[]")
    if host in ("", "*", *LOOPBACK):
        return host
    try:
        return "" if ipaddress.ip_network(host, strict=False).version == 6 and "/" in host else host
    except ValueError:
        pass
    import httpx

    try:
        httpx.URL(host if "://" in host else f"all://*{host}")
    except (httpx.InvalidURL, ValueError):
        return ""
    return host
