"""The settings of the service, each declared once: default, what is allowed, help and flag.

The flags of `causalmm serve` and the table in docs/serve.md derive from the fields.
Tests: tests/serve/test_options.py.
"""

import ipaddress
import re
from dataclasses import dataclass, field

from causalmm.config import check_fields, number, setting

_HOST = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:\d{1,5})?")


def _address(name: str, value: object) -> str:
    if value != "localhost":
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise ValueError(f"{name}={value!r}: expected an IP address or localhost") from None
    return str(value)


def _hosts(name: str, value: object) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    hosts = tuple(each.strip().lower() for each in names if each.strip())
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ValueError(f"{name}: {host!r} is no name of a host, with :PORT if wanted")
    return hosts


def _range(name: str, value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", value) if isinstance(value, str) else None
    pair = tuple(map(int, found.groups())) if found else value
    if not isinstance(pair, tuple) or len(pair) != 2 or not 1 <= pair[0] <= pair[1]:
        raise ValueError(f"{name}={value!r}: expected MIN:MAX, numbers of replicas from 1 on")
    return pair


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How requests are taken, batched and bounded. Wrong values raise ValueError."""

    host: str = setting("127.0.0.1", "address to listen on", _address, {}, metavar="ADDRESS")
    port: int = number(8000, "port to listen on", least=1, most=65535, metavar="N")
    replicas: int = number(1, "replicas of the model", least=1, most=4096, metavar="N")
    autoscale: tuple[int, int] | None = setting(
        None,
        "replicas of the model by load, in the place of --replicas",
        _range,
        {},
        metavar="MIN:MAX",
    )
    gpus_per_replica: float | None = number(
        None,
        "GPUs of each replica, also part of one (default: 1 if there is one and --device allows)",
        least=0,
        most=64,
        metavar="G",
    )
    cpus_per_replica: int = number(
        1,
        "CPU cores of each replica, and its threads; more threads than idle cores slow it down",
        least=1,
        most=1024,
        metavar="N",
    )
    batch_size: int = number(
        32, "questions that are answered together, at most", least=1, most=4096, metavar="N"
    )
    batch_wait: float = number(
        0.01,
        "seconds that a batch waits for more questions",
        above=-1e-9,
        most=60,
        metavar="S",
    )
    max_queued: int = number(
        512, "requests that wait for a model; others get 503", least=1, most=10**6, metavar="N"
    )
    max_body: int = number(
        20_000_000, "bytes of a request's body, and of a fetched picture", least=1, metavar="BYTES"
    )
    max_pictures: int = number(8, "pictures of a request", least=1, metavar="N")
    max_picture_pixels: int = number(
        33_000_000, "pixels of a request's pictures, decoded, in all", least=1, metavar="N"
    )
    max_tokens: int = number(
        1024, "tokens of an answer that may be asked for", least=1, metavar="N"
    )
    max_draws: int = number(
        8,
        "draws that a request's settings may ask for, each a row of its own",
        least=1,
        metavar="N",
    )
    max_seconds: float = number(
        120.0, "seconds from a request to the end of its answer", above=0, most=86400, metavar="S"
    )
    allow_hosts: tuple[str, ...] = setting(
        (),
        "hosts, with commas between them, whose pictures are fetched (none: data: addresses alone)",
        _hosts,
        {},
        metavar="HOSTS",
    )
    api_key: str | None = field(default=None, repr=False, metadata={})
    """That every request must have; None: none is asked for."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.api_key is not None and not (self.api_key and self.api_key.isascii()):
            raise ValueError("api_key: expected ASCII text that is not empty")
