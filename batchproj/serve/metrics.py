"""What Prometheus asks for: how many requests, how they ended and how long they took."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30, 60)


class Metrics:
    """Of one app; `histogram_quantile(0.95, …)` over `batchproj_request_seconds` gives p95."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("batchproj_requests", "Answers.", ["endpoint", "status"], registry=own)
        self.seconds = Histogram(
            "batchproj_request_seconds", "Time to the end of the answer.", ["endpoint"], buckets=_SECONDS, registry=own
        )
        self.encoding = Histogram(
            "batchproj_encode_seconds", "Time a batch is in a model.", buckets=_SECONDS, registry=own
        )
        self.batch = Histogram(
            "batchproj_encode_batch", "Queries encoded together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=own
        )
        self.cached = Counter("batchproj_encode_cached", "Queries whose vector was still known.", registry=own)
        self.run = Gauge("batchproj_live_run", "Number of the run that is searched.", registry=own)
        self.switches = Counter(
            "batchproj_run_switches", "How often another run became the one searched.", registry=own
        )
        self.at_work = Gauge("batchproj_requests_at_work", "Requests in work or waiting.", ["kind"], registry=own)

    def watch(self, kind: str, count: Callable[[], int]) -> None:
        """Report how many of a kind are at work whenever somebody asks."""
        self.at_work.labels(kind).set_function(count)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Measured:
    """Counts and times every request under the route it took: a path by itself could be anything."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            endpoint = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(endpoint, str(status)).inc()
            self._metrics.seconds.labels(endpoint).observe(time.perf_counter() - begun)
