"""What GET /metrics tells, in Prometheus' text. Tests: tests/serve/test_http.py."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from causalmm.serve.answers import Answer

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Of one gateway, from its start on."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter(
            "causalmm_requests", "Chat completions, by the status of the answer.", ["status"], **own
        )
        self.running = Gauge("causalmm_requests_running", "Requests not answered yet.", **own)
        self.seconds = Histogram(
            "causalmm_request_seconds", "From a request to the end of its answer.",
            buckets=_SECONDS, **own,
        )  # fmt: skip
        self.rows = Histogram(
            "causalmm_batch_rows", "Rows decoded together, once for each answer.",
            buckets=_ROWS, **own,
        )  # fmt: skip
        self.tokens = Counter("causalmm_tokens", "Tokens read and answered.", ["kind"], **own)

    def count(self, answer: Answer) -> None:
        """An answer that was given."""
        self.rows.observe(answer.batch)
        self.tokens.labels("prompt").inc(answer.prompt_tokens)
        self.tokens.labels("completion").inc(answer.completion_tokens)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self.registry)
