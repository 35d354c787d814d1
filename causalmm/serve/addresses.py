"""Pictures at addresses on the network, fetched only from hosts that are allowed.

A host's name is resolved once, every address that it has must be a public one, and the connection
goes to that very address: a name that means another address a moment later reaches nothing. Each
redirect is checked alike. Proxies of the environment are not used.
Tests: tests/serve/test_addresses.py.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import httpx

from causalmm.serve.errors import ApiError

REDIRECTS = 3
"""That are followed, at most."""
_PORTS = {"http": 80, "https": 443}
_EMBEDDING = (
    ipaddress.ip_network("64:ff9b::/96"),
    ipaddress.ip_network("64:ff9b:1::/48"),
    ipaddress.ip_network("2001::/32"),
    ipaddress.ip_network("2002::/16"),
)
"""IPv6 ranges whose addresses hold an IPv4 address (NAT64, Teredo, 6to4)."""

Resolver = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a host, as the system resolves them."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(each[4][0] for each in found))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, and of one machine."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # with a zone: of this machine's links
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in _EMBEDDING):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class Fetcher:
    """Fetches pictures from `hosts` ("name" or "name:port", in small letters).

    `resolver` and `transport` stand for the system's and httpx's own in tests.
    """

    def __init__(
        self,
        hosts: Collection[str],
        max_bytes: int,
        *,
        resolver: Resolver = resolve,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.hosts = frozenset(hosts)
        self.max_bytes = max_bytes
        self.resolver = resolver
        self.transport = transport

    async def fetch(self, address: str, param: str) -> bytes:
        """What is at an address. Raises ApiError where it may not or cannot be fetched."""
        options: dict[str, Any] = {"trust_env": False, "follow_redirects": False, "timeout": 20.0}
        async with httpx.AsyncClient(transport=self.transport, **options) as client:
            try:
                url = httpx.URL(address)
                for _ in range(REDIRECTS + 1):
                    content, url = await self._get(client, url, param)
                    if content is not None:
                        return content
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, OSError):
                raise ApiError(
                    400, f"{param}: the picture's address cannot be fetched", param=param
                ) from None
        raise ApiError(400, f"{param}: more than {REDIRECTS} redirects", param=param)

    async def _get(
        self, client: httpx.AsyncClient, url: httpx.URL, param: str
    ) -> tuple[bytes | None, httpx.URL]:
        """What is there, or else None and where it leads on."""
        pinned = await self._pin(url, param)
        request = client.build_request(
            "GET",
            url.copy_with(host=pinned, fragment=None),
            headers={"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity"},
            extensions={"sni_hostname": url.host},
        )
        response = await client.send(request, stream=True)
        try:
            if response.is_redirect:
                return None, url.join(response.headers["location"])
            if response.status_code != 200:
                raise ApiError(
                    400,
                    f"{param}: the picture's host answers with status {response.status_code}",
                    param=param,
                )
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > self.max_bytes:
                    raise ApiError(
                        400,
                        f"{param}: the picture is larger than {self.max_bytes:,} bytes",
                        param=param,
                    )
            return bytes(content), url
        finally:
            await response.aclose()

    async def _pin(self, url: httpx.URL, param: str) -> str:
        """The IP address to connect to. Raises ApiError for a host that is not to be reached."""
        host = url.host.lower().rstrip(".")
        if url.scheme not in _PORTS or url.userinfo:
            raise ApiError(400, f"{param}: expected an http(s) address without a user", param=param)
        port = url.port or _PORTS[url.scheme]
        named = {f"{host}:{port}"} | ({host} if port == _PORTS[url.scheme] else set())
        if not named & self.hosts:
            raise ApiError(
                400,
                f"{param}: pictures are not fetched from {ascii(host)[1:-1][:80]}; "
                "expected a data: address or an allowed host",
                param=param,
                code="host_not_allowed",
            )
        found = await self.resolver(url.host, port)
        if not found or not all(is_public(each) for each in found):
            raise ApiError(
                400,
                f"{param}: the picture's host has no public address",
                param=param,
                code="host_not_allowed",
            )
        return found[0]
