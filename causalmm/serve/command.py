"""The `serve` command: from flags to a service that runs until it is told to end.

Tests: tests/serve/test_service.py.
"""

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from causalmm.cli.request import Request, find_model
from causalmm.cli.terminal import exit_code, tell
from causalmm.errors import FailureError
from causalmm.extras import require
from causalmm.families.registry import demos
from causalmm.serve.flags import parse_args, read_options
from causalmm.serve.options import ServeOptions

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would give replicas less of the processor than anything else has.
    "RAY_worker_niceness": "0",
}


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run the command and return its exit code."""

    def act() -> None:
        args = parse_args(sys.argv[1:] if argv is None else argv, prog)
        options = read_options(args)
        require("`causalmm serve`", "serve")
        run(args, find_model(args), options)

    return exit_code(act)


def run(args: argparse.Namespace, request: Request, options: ServeOptions) -> None:
    """Serve until SIGINT or SIGTERM. Raises FailureError where the service cannot start."""
    os.environ.update(_QUIET)
    import ray
    from ray import serve
    from ray.exceptions import RayError

    from causalmm.serve.gateway import APP

    if request.model in demos():
        tell(f"{request.model}: a small demonstration model trained on drawn scenes")
    logs: dict[str, Any] = {"log_level": "WARNING", "enable_access_log": False}
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    own: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    ended = threading.Event()
    try:
        try:
            ray.init(
                address=args.ray_address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(own if args.ray_address is None else {}),
            )
            # Ray has set handlers of its own.
            for each in (signal.SIGINT, signal.SIGTERM):
                signal.signal(each, lambda *_: ended.set())
            check_resources(ray.cluster_resources(), args, options)
            serve.start(
                proxy_location="EveryNode",
                http_options={"host": options.host, "port": options.port},
                logging_config=logs,
            )
            serve.run(application(args, request, options), name=APP, logging_config=logs)
        except (RayError, RuntimeError, ConnectionError, ValueError) as error:
            raise FailureError(f"the service cannot start: {last_line(error)}") from error
        tell(f"{request.model} is served at http://{options.host}:{options.port}/v1")
        ended.wait()
        tell("ending")
        serve.delete(APP)
    finally:
        # Ray tells of its own actors that they are gone.
        with contextlib.redirect_stdout(io.StringIO()):
            if args.ray_address is None:
                serve.shutdown()
            ray.shutdown()


def check_resources(
    found: Mapping[str, float], args: argparse.Namespace, options: ServeOptions
) -> None:
    """Raise FailureError where our own cluster has no room for the replicas: Ray would wait."""
    if args.ray_address is not None:
        return
    replicas = options.replicas if options.autoscale is None else options.autoscale[0]
    for name, each in (("CPU", options.cpus_per_replica), ("GPU", options.gpus_per_replica or 0)):
        if replicas * each > (there := found.get(name, 0)):
            raise FailureError(
                f"{replicas} replicas need {replicas * each:g} {name}s, and this machine has "
                f"{there:g}"
            )


def last_line(error: BaseException) -> str:
    """What an error of Ray's says in the end: the lines before it are those of a traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__


def application(args: argparse.Namespace, request: Request, options: ServeOptions) -> Any:
    """The deployments of the service, for `serve.run`. Ray must be running."""
    import ray
    from ray import serve

    from causalmm.serve.gateway import MODEL, Gateway
    from causalmm.serve.model import ModelReplica

    gpus = options.gpus_per_replica
    if gpus is None:
        wanted = args.device == "auto" or args.device.startswith("cuda")
        gpus = 1.0 if wanted and ray.cluster_resources().get("GPU", 0) >= 1 else 0.0
    # A batch runs while the next ones gather; the router asks a full replica again after a while.
    ongoing = 4 * options.batch_size
    scaling: dict[str, Any] = {"num_replicas": options.replicas}
    if options.autoscale is not None:
        least, most = options.autoscale
        scaling = {
            "autoscaling_config": {
                "min_replicas": least,
                "max_replicas": most,
                "target_ongoing_requests": options.batch_size,
            }
        }
    model = serve.deployment(
        ModelReplica,
        name=MODEL,
        ray_actor_options={"num_cpus": options.cpus_per_replica, "num_gpus": gpus},
        max_ongoing_requests=ongoing,
        max_queued_requests=options.max_queued,
        health_check_period_s=2,
        **scaling,
    ).bind(args, request, options)
    # Waits for models, and hardly computes.
    gateway = serve.deployment(
        Gateway,
        name="Gateway",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=options.max_queued + 4096,
    )
    return gateway.bind(model, request, options)
