"""`causalmm app`: load the models, then serve the page.

Tests: tests/app/test_app_command.py.
"""

import argparse
import ipaddress
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from causalmm.app.limits import MIB, MOST_WAITING, Limits
from causalmm.cli.flags import (
    SETTINGS_EPILOG,
    Parser,
    add_decoding,
    add_pixel_limits,
    add_running,
    add_settings,
    at_least,
)
from causalmm.cli.request import Request, find_model
from causalmm.cli.session import Session, memory_guard
from causalmm.cli.terminal import exit_code, tell
from causalmm.errors import FailureError, RequestError
from causalmm.extras import require
from causalmm.families.registry import demos, titles

HOST, PORT = "127.0.0.1", 7860
_LIMITS = {
    "max-file-mib": ("file_bytes", MIB, "of one uploaded file, in MiB"),
    "max-stored-mib": ("stored_bytes", MIB, "of all uploaded files, in MiB"),
    "keep-minutes": ("kept_seconds", 60, "after which uploaded files are deleted"),
    "max-pictures": ("pictures", 1, "of a conversation"),
    "max-answer-tokens": ("new_tokens", 1, "that the page may set max_new_tokens to"),
    "queue": ("waiting", 1, f"questions that may wait, {MOST_WAITING} at most"),
}
"""By the name of a flag: the limit, its unit, and what it says."""


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command and return its exit code; `prog` is its name in messages."""
    return exit_code(lambda: run(parse_args(sys.argv[1:] if argv is None else argv, prog)))


def parse_args(argv: Sequence[str], prog: str | None = None) -> argparse.Namespace:
    """Flags as given. Raises RequestError for what cannot be read."""
    parser = Parser(
        prog=prog,
        description="A page in the browser: plain and CausalMM answers side by side.",
        epilog=f"{SETTINGS_EPILOG} The page begins with them.",
    )
    packaged = " and ".join(demos())
    parser.add_argument(
        "--model",
        action="append",
        help=f"a folder or a hub id of {titles()}; may be given several times (default: the "
        f"demonstration models {packaged})",
    )
    parser.add_argument(
        "--host",
        default=HOST,
        help="address to serve at; there is no login, so everyone who can reach it can ask "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=at_least(0), default=PORT, metavar="N", help="0: a free one (default: 7860)"
    )
    add_pixel_limits(parser)
    group = parser.add_argument_group("limits")
    for name, (limit, unit, help) in _LIMITS.items():
        group.add_argument(
            f"--{name}", type=at_least(1), metavar="N", default=getattr(Limits(), limit) // unit,
            help=f"{help} (default: %(default)s)",
        )  # fmt: skip
    add_settings(parser)
    add_decoding(parser)
    add_running(parser)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Serve until interrupted.

    Raises RequestError for a wrong request, FailureError where something is missing or goes wrong.
    """
    require("the page", "app")
    limits = read_limits(args)
    requests = [
        find_model(argparse.Namespace(**vars(args) | {"model": name}))
        for name in dict.fromkeys(args.model or demos())
    ]
    if any(request.config is None for request in requests):
        raise RequestError("mode plain has nothing to compare with: expected another --mode")
    with tempfile.TemporaryDirectory(prefix="causalmm-app-") as folder, memory_guard():
        _serve(args, requests, limits, Path(folder))


def read_limits(args: argparse.Namespace) -> Limits:
    """The limits that the flags say. Raises RequestError for one that cannot be."""
    given = {
        limit: getattr(args, name.replace("-", "_")) * unit
        for name, (limit, unit, _) in _LIMITS.items()
    }
    try:
        return replace(Limits(), **given)
    except ValueError as error:
        raise RequestError(str(error)) from None


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address, port 0 for a free one. Raises FailureError where there is none."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise FailureError(
            f"nothing can be served at {host}, port {port} ({error.strerror}): try another "
            "--port or --host"
        ) from error
    return found


def _serve(
    args: argparse.Namespace, requests: Sequence[Request], limits: Limits, folder: Path
) -> None:
    listening = listen(args.host, args.port)
    # Read when gradio is imported: where it keeps uploaded files, and that it reports to nobody.
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    # Imported here: it loads torch, transformers and gradio, which takes seconds.
    from causalmm.app.events import Events
    from causalmm.app.examples import draw_examples
    from causalmm.app.page import build_page
    from causalmm.app.server import application, serve

    with listening:
        host, port, *_ = listening.getsockname()
        sessions = {request.model: Session.start(args, request) for request in requests}
        events = Events(sessions, draw_examples(folder / "examples"), limits)
        app = application(build_page(events), folder, limits)
        if not ipaddress.ip_address(host).is_loopback:
            tell(
                f"{args.host} is not this machine alone: whoever can reach it can use the page, "
                "which has no login"
            )
        shown = f"[{host}]" if ":" in host else host
        tell(f"the page is at http://{shown}:{port}/ (interrupt to end)")
        try:
            serve(app, listening)
        finally:
            events.close()
