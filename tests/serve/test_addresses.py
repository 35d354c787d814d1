"""Pictures on the network: allowed hosts alone, public addresses alone, resolved once."""

import asyncio

import httpx
import pytest

from causalmm.serve.addresses import Fetcher, is_public
from causalmm.serve.errors import ApiError

PUBLIC = "93.184.216.34"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1",
        "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1",
        "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
        "2001:0:7f00:1::", "2001:db8::1", "not an address", "",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111"])
def test_addresses_that_are(address):
    assert is_public(address)


def fetch(url, answer, hosts=("pictures.example",), names=None, max_bytes=100):
    """What is fetched, the requests that were sent and the names that were resolved."""
    sent, resolved = [], []

    def handle(request):
        sent.append(request)
        return answer(request)

    async def resolver(host, port):
        resolved.append((host, port))
        return (names or {}).get(host, [PUBLIC])

    fetcher = Fetcher(hosts, max_bytes, resolver=resolver, transport=httpx.MockTransport(handle))
    return asyncio.run(fetcher.fetch(url, "url")), sent, resolved


def test_the_connection_goes_to_the_address_that_was_resolved():
    content, sent, resolved = fetch(
        "https://Pictures.example/a.png?b#c", lambda _: httpx.Response(200, content=b"picture")
    )
    assert content == b"picture"
    [request] = sent
    assert str(request.url) == f"https://{PUBLIC}/a.png?b"
    assert request.headers["host"] == "pictures.example"
    assert request.extensions["sni_hostname"] == "pictures.example"
    assert resolved == [("pictures.example", 443)]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://other.example/a", "not fetched from other.example"),
        ("http://pictures.example.evil.example/a", "not fetched from pictures.example.evil"),
        ("http://pictures.example:81/a", "not fetched from pictures.example"),
        ("http://pictures.example@other.example/a", "without a user"),
        ("http://user:word@pictures.example/a", "without a user"),
        ("http://127.0.0.1/a", "not fetched from 127.0.0.1"),
        ("http://[::1]/a", "not fetched from ::1"),
        ("http://2130706433/a", "not fetched from 2130706433"),
        ("http://", "not fetched|cannot be fetched|expected an http"),
        ("http://pictures.example:99999/a", "not fetched from pictures.example"),
    ],
)
def test_hosts_that_are_not_allowed_are_not_even_resolved(url, sentence):
    def never(request):
        raise AssertionError(request.url)

    with pytest.raises(ApiError, match=sentence) as refused:
        fetch(url, never)
    assert refused.value.status == 400


@pytest.mark.parametrize("found", [["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["::ffff:127.0.0.1"], []])
def test_an_allowed_host_with_an_address_that_is_not_public_is_not_reached(found):
    def never(request):
        raise AssertionError(request.url)

    with pytest.raises(ApiError, match="no public address"):
        fetch("http://pictures.example/a", never, names={"pictures.example": found})


def test_redirects_are_checked_as_addresses_are():
    def lead(to):
        return lambda request: httpx.Response(302, headers={"location": to})

    for to in ("http://169.254.169.254/latest", "http://other.example/", "file:///etc/passwd"):
        with pytest.raises(ApiError, match="not fetched from|expected an http"):
            fetch("http://pictures.example/a", lead(to))
    with pytest.raises(ApiError, match="no public address"):
        fetch(
            "http://pictures.example/a",
            lead("http://inside.example/"),
            hosts=("pictures.example", "inside.example"),
            names={"inside.example": ["192.168.0.1"]},
        )
    with pytest.raises(ApiError, match="more than 3 redirects"):
        fetch("http://pictures.example/a", lead("/again"))


def test_large_files_and_other_statuses_are_refused():
    with pytest.raises(ApiError, match="larger than 100 bytes"):
        fetch("http://pictures.example/a", lambda _: httpx.Response(200, content=b"x" * 101))
    with pytest.raises(ApiError, match="status 404"):
        fetch("http://pictures.example/a", lambda _: httpx.Response(404))
