"""A running service, for a module of slow tests."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import pytest

START_SECONDS = 240
REPLICAS = 2


class Service(NamedTuple):
    """A running `causalmm serve`."""

    process: subprocess.Popen
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> int:
        """How many replicas of the model can answer."""
        try:
            with urlopen(f"{self.url}/health", timeout=10) as answer:
                return int(re.search(rb'"replicas":(\d+)', answer.read())[1])
        except (URLError, OSError):
            return 0

    def wait_for(self, replicas: int, seconds: float = START_SECONDS) -> None:
        """Until so many can answer."""
        begun = time.monotonic()
        while self.ready() != replicas:
            assert self.process.poll() is None
            assert time.monotonic() - begun < seconds, "no such number of replicas in time"
            time.sleep(0.5)

    def metric(self, name: str) -> float:
        """A number of GET /metrics; 0 where it is not there."""
        with urlopen(f"{self.url}/metrics", timeout=10) as answer:
            found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.M)
        return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """Two replicas of the demonstration model behind a port."""
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("service")
    command = [sys.executable, "-m", "causalmm", "serve", "--port", str(port)]
    command += ["--replicas", str(REPLICAS), "--batch-size", "4", "--max-tokens", "4096"]
    with open(folder / "said", "wb") as said:
        process = subprocess.Popen(command, stderr=said, env={**os.environ, "OMP_NUM_THREADS": "1"})
        started = Service(process, port)
        try:
            started.wait_for(REPLICAS)
            yield started
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(60)
            finally:
                process.kill()
    said = (folder / "said").read_text()
    assert code == 0, said
    assert "Traceback" not in said
