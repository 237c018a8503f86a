"""What Prometheus reads at `/metrics`. Each server has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter(
            "unimodal_requests", "Requests by endpoint and status.", ["endpoint", "status"], registry=own
        )
        self.seconds = Histogram(
            "unimodal_request_seconds", "From a request's head to the end of its answer.", ["endpoint"],
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self.in_flight = Gauge("unimodal_requests_in_flight", "Requests that are being worked on.", registry=own)
        self.running = Gauge("unimodal_rows_running", "Rows in the batch.", registry=own)
        self.waiting = Gauge("unimodal_requests_waiting", "Requests that wait for a row.", registry=own)
        self.tokens = Counter("unimodal_tokens", "Tokens of prompts and answers.", ["kind"], registry=own)
        self.media = Counter("unimodal_media", "Media in answers.", ["modality"], registry=own)
        self.steps = Histogram(
            "unimodal_step_seconds", "Time of one turn of the batch.", buckets=_STEP_SECONDS, registry=own
        )
        self.work = Histogram(
            "unimodal_work_seconds", "Time of the pieces of work between two turns: coding media, judging drafts.",
            buckets=_STEP_SECONDS, registry=own,
        )  # fmt: skip
        self.rows = Histogram("unimodal_step_rows", "Rows in one turn of the batch.", buckets=_ROWS, registry=own)

    def count_turn(self, seconds: float, rows: int, waiting: int) -> None:
        """Count one turn of the worker: its time, the rows in it, the requests that wait for a row."""
        self.steps.observe(seconds)
        self.rows.observe(rows)
        self.waiting.set(waiting)

    def encode(self) -> bytes:
        """All figures in Prometheus's text format."""
        return generate_latest(self.registry)
