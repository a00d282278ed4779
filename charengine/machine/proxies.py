"""Proxies: servers of this machine are asked without one, so that no proxy's variable matters unless a server elsewhere is asked."""

from __future__ import annotations

import os
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

NO_PROXY = ("no_proxy", "NO_PROXY")
PROXIES = ("all_proxy", "ALL_PROXY", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SERVERS = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL_S3")
SOCKS = ("socksio", "socks")  # the packages by which httpx (Prefect) and requests (MLflow) speak it
OFFLINE = "HF_HUB_OFFLINE"


def keep_loopback_direct() -> None:
    """Name this machine in NO_PROXY, beside what the user names there: a proxy elsewhere cannot reach our servers.

    Both spellings are set, since urllib, httpx and requests prefer the small one and others know one only. httpx fails at what it
    cannot read, whatever it asks for: that is left out, and nothing is downloaded past a proxy that was meant.
    """
    named = [part.strip().strip("[]") for name in NO_PROXY for part in os.environ.get(name, "").split(",")]
    together = ",".join(dict.fromkeys((*filter(_is_readable, named), *LOOPBACK)))
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
    remedy = f"give http://HOST:PORT, or unset it, or name the host of {elsewhere} in NO_PROXY"
    return [f"{name}={os.environ[name]}: is no proxy that can be used here: {remedy}" for name in _unusable()]


def _asked_elsewhere() -> list[str]:
    """The variables that name a server which is asked through a proxy."""
    return [name for name in SERVERS if (host := _host(os.environ.get(name, ""))) and not proxy_bypass(host)]


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _unusable() -> list[str]:
    return [name for name in PROXIES if os.environ.get(name) and not _usable(os.environ[name])]


def _usable(proxy: str) -> bool:
    """Whether both httpx and requests can ask through it."""
    import httpx

    try:
        url = httpx.Proxy(proxy if "://" in proxy else f"http://{proxy}").url
    except (httpx.InvalidURL, ValueError):
        return False
    return bool(url.host) and (url.scheme in ("http", "https") or all(map(find_spec, SOCKS)))


def _is_readable(host: str) -> bool:
    """Whether httpx can read an entry of NO_PROXY: no networks of IPv6, and little that is misspelt."""
    if host in ("", "*", *LOOPBACK):
        return bool(host)
    import httpx

    try:
        httpx.URL(host if "://" in host else f"all://[{host}]" if host.count(":") > 1 else f"all://*{host}")
    except (httpx.InvalidURL, ValueError):
        return False
    return True
