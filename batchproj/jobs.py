"""Jobs on a Ray cluster, through the head's HTTP API: hand one in, follow its log, list and stop them.

The API runs whatever it is given, as the cluster's user. So a head that answers without a token is refused, and the
token is taken as Ray takes it: RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import requests

from batchproj.credentials import has_credentials, masked
from batchproj.errors import BatchprojError, TryLater, UsageError
from batchproj.job_log import unmarked
from batchproj.shipping import Shipment

ANSWER_S = 15.0
POLL_S = 1.0
AWAY_S = 60.0
"""How long a head that answered before may be away while its job is followed."""

STOPPED = 128 + signal.SIGTERM
_RAYS_OWN = re.compile(r"[-\d]+ [:,\d]+\s+INFO job_manager\.py|Running entrypoint for job raysubmit_")
"""Begins of the lines that Ray writes at the head of a job's log."""

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

OnLine = Callable[[str, bool], None]
"""Told each line of a job's log, and whether it belongs to the result."""


@dataclass(frozen=True)
class JobState:
    """A job as the head tells of it; times in seconds since 1970. `exit_code` is None while it runs."""

    job: str
    state: str
    command: str
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Jobs:
    """The jobs of one cluster; every method raises TryLater when the head does not answer."""

    def __init__(self, address: str, insecure: bool = False) -> None:
        """Raises UsageError for a head that is not to be trusted, does not trust us, or has another Ray."""
        self.address = _checked(address)
        is_open = _asks_for_no_token(self.address)
        if is_open and not insecure:
            raise UsageError(
                f"{self.address} answers without a token, so anyone who reaches it can run anything there: expected "
                "token authentication (RAY_AUTH_MODE=token on the cluster); --insecure goes on nevertheless"
            )
        if not is_open:
            os.environ["RAY_AUTH_MODE"] = "token"  # Ray sends a token only where this says so
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # a set one, or RAY_ADDRESS, would count instead of ours
        import ray
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        # each of the first two sets a level of its own when it is imported
        for talkative in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env"):
            logging.getLogger(f"ray.{talkative}").setLevel(logging.ERROR)
        try:
            with self._answering():
                self._client = JobSubmissionClient(self.address)
        except AuthenticationError as error:
            raise UsageError(_no_entry(self.address, str(error))) from error
        theirs = str(self._client._server_ray_version)  # what it asked for a moment ago, and tells nobody
        if _series(theirs) != _series(ray.__version__):
            raise UsageError(
                f"{self.address} runs Ray {theirs}, and this machine has {ray.__version__}: expected the same series; "
                f"pip install 'ray=={theirs}', or start the cluster from the image of this version"
            )

    def submit(self, shipment: Shipment) -> str:
        """Hand in a job; its id."""
        with self._answering():
            return str(
                self._client.submit_job(
                    entrypoint=shipment.entrypoint,
                    runtime_env=shipment.runtime_env,
                    metadata={"batchproj": " ".join(shipment.command)},
                )
            )

    def list(self) -> list[JobState]:
        """Jobs that were handed in, newest first; drivers that merely joined the cluster are left out."""
        with self._answering():
            found = [_state(each) for each in self._client.list_jobs() if each.submission_id]
        return sorted(found, key=lambda each: each.started or 0, reverse=True)

    def look(self, job: str) -> JobState:
        """Raises UsageError if there is no such job."""
        with self._answering(), self._known(job):
            return _state(self._client.get_job_info(job))

    def stop(self, job: str) -> bool:
        """Ask a job to end, as by SIGTERM; False if it had ended."""
        with self._answering(), self._known(job):
            return bool(self._client.stop_job(job))

    def follow(self, job: str, on_line: OnLine) -> JobState:
        """Tell the log from its begin until the job has ended. Raises UsageError if there is no such job."""
        self.look(job)  # whose log never comes
        shown = 0
        away_since: float | None = None
        while True:
            try:
                for text in _lines(self._client, job, shown):
                    shown += len(text)
                    away_since = None
                    if not _RAYS_OWN.match(text):
                        on_line(*unmarked(text))
                state = self.look(job)
                if state.has_ended:
                    return state
            except (TryLater, RuntimeError) as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > AWAY_S:
                    raise TryLater(
                        f"{self.address} does not answer any more, the job may be going on: "
                        f"batchproj jobs --address {self.address} --logs {job}"
                    ) from error
            time.sleep(POLL_S)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (ConnectionError, requests.exceptions.RequestException) as error:
            raise _away(self.address, error) from error

    @contextlib.contextmanager
    def _known(self, job: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if "404" not in str(error):
                raise BatchprojError(f"{self.address}: {' '.join(str(error).split())[:300]}") from error
            raise UsageError(f"no job '{job}' at {self.address}; batchproj jobs --address {self.address}") from error


def _lines(client: Any, job: str, skipped: int) -> Iterator[str]:
    """The lines of a job's log as they come, without the first `skipped` characters.

    The client's iterator is async: it runs in a thread, so that a signal finds this one waiting for a queue alone.
    Raises RuntimeError when the connection is lost.
    """
    arrived: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()

    async def tail() -> None:
        async for chunk in client.tail_job_logs(job):
            arrived.put(chunk)

    def read() -> None:
        try:
            asyncio.run(tail())
        except Exception as error:
            arrived.put(error)
        arrived.put(None)

    threading.Thread(target=read, daemon=True).start()
    rest = ""
    while (chunk := arrived.get()) is not None:
        if isinstance(chunk, Exception):
            raise RuntimeError(str(chunk)) from chunk
        rest += chunk[skipped:]
        skipped = max(0, skipped - len(chunk))
        *lines, rest = rest.split("\n")
        yield from (f"{line}\n" for line in lines)
    if rest:
        yield rest


def exit_code(state: JobState) -> int:
    """What the job's command ended with. Raises TryLater for a job that never came to run, or whose node is gone."""
    if state.state == "STOPPED":
        return STOPPED
    if state.exit_code is None:
        said = " ".join(state.message.split())[:300]
        raise TryLater(f"job {state.job} did not end by itself: {said}; submit it again")
    return state.exit_code if state.exit_code >= 0 else 128 - state.exit_code


def _checked(address: str) -> str:
    """Raises UsageError for what is no plain URL of a head: Ray would import other schemes as modules."""
    if has_credentials(address):
        raise UsageError(f"{masked(address)} has credentials in it: the token comes by RAY_AUTH_TOKEN or a file")
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"no address '{address}': expected the URL of a Ray head, such as http://head:8265")
    return address.rstrip("/")


def _asks_for_no_token(address: str) -> bool:
    """Whether a head answers whoever asks. Raises UsageError if it is none, TryLater if it does not answer."""
    try:
        answer = requests.get(f"{address}/api/version", timeout=ANSWER_S, allow_redirects=False)
    except requests.exceptions.RequestException as error:
        raise _away(address, error) from error
    if answer.status_code in (401, 403):
        return False
    if answer.status_code >= 500:
        raise TryLater(f"{address} answers {answer.status_code}; try again when the cluster is up")
    try:
        is_head = answer.ok and "ray_version" in answer.json()
    except ValueError:
        is_head = False
    if not is_head:
        raise UsageError(f"{address} is no Ray head: expected the address of a dashboard, such as http://head:8265")
    return True


def _away(address: str, error: Exception) -> BatchprojError:
    if isinstance(error, requests.exceptions.SSLError):
        said = re.search(r"\[SSL[^\]]*\] ([^('\"]*)", str(error))
        why = f" ({said[1].strip()})" if said else ""
        return UsageError(
            f"{address} is not reached by TLS{why}: expected a certificate that this machine trusts, or http://"
        )
    return TryLater(
        f"no Ray head answers at {address} ({type(error).__name__}): is the cluster up, and is its port 8265 forwarded "
        "to here? then try again"
    )


def _no_entry(address: str, said: str) -> str:
    where = "set RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, or put it into ~/.ray/auth_token"
    if "Forbidden" in said or "failed" in said:
        return f"{address} refuses the token: it is not the one of this cluster; {where}"
    return f"{address} asks for a token, and there is none here: {where}"


def _series(version: str) -> list[str]:
    return version.split(".")[:2]


def _state(details: Any) -> JobState:
    def seconds(milliseconds: int | None) -> float | None:
        return None if not milliseconds else milliseconds / 1000

    return JobState(
        job=details.submission_id,
        state=str(getattr(details.status, "value", details.status)),
        command=(details.metadata or {}).get("batchproj", details.entrypoint),
        started=seconds(details.start_time),
        ended=seconds(details.end_time),
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )
