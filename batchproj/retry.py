"""Every store call goes through `retrying`, but for the first try to read a local file: it waits for a store that is
away and spares a busy one.

Faults of network, server or machine are retried until the budget is used up and then raised as TryLater. A missing or
forbidden object raises at once; refused credentials are renewed once. Knows errors by code and by class name,
so that a store that is not used is not imported.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception, wait_random_exponential

from batchproj.errors import BatchprojError, DiskFault, TryLater, UsageError

CALLS_AT_ONCE = 32
LONGEST_WAIT_S = 5.0
"""Between two tries: how late a call may notice that the store is back."""
FIRST_LINE_AFTER_S = 3.0
LINE_EVERY_S = 5.0

T = TypeVar("T")
Watcher = Callable[[str], None]

_TRANSIENT_STATUS = frozenset({429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset(
    {
        *map(str, _TRANSIENT_STATUS),
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
    }
)
_BUSY_STATUS = frozenset({429, 503})
_BUSY_CODES = frozenset({"429", "503", "ServiceUnavailable", "SlowDown"})
_NETWORK_ERRORS = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectTimeoutError",
        "ConnectionClosedError",
        "EndpointConnectionError",
        "HTTPClientError",
        "IncompleteReadError",
        "ReadTimeoutError",
        "ResponseParserError",
        "ResponseStreamingError",
        "ServerDisconnectedError",
    }
)
_CUT = frozenset({"ClientPayloadError", "IncompleteReadError", "ResponseStreamingError"})
_MACHINE_ERRORS = frozenset(
    {
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EIO,
        errno.EMFILE,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENFILE,
        errno.ENODEV,
        errno.ENOMEM,
        errno.ENOTCONN,
        errno.ESTALE,
    }
)
"""Of a disk, a mount or a machine that is in trouble, whatever file was asked for."""
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"})
_CREDENTIAL_CODES = frozenset(
    {
        "400",  # expired, in the answer to a HEAD, which has no body to say so
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)

USUAL_BUDGET_S = 180.0

_budget_s = USUAL_BUDGET_S
_abandoned = False


def configure(budget_s: float) -> None:
    """How long each store call of this process is retried, counted from the begin of the first try that failed."""
    global _budget_s
    _budget_s = budget_s


def abandon() -> None:
    """The process is to end: whoever waits for a store waits no longer, and no later call waits at all.

    For signal handlers: it takes no lock.
    """
    global _abandoned
    _abandoned = True


def check_abandoned() -> None:
    """Raises TryLater once the process is to end: for long loops, since libraries may drop the signal's exception."""
    if _abandoned:
        raise TryLater("stopped; run the same command again")


def patience_s() -> float:
    """The budget, for clients that retry by themselves."""
    return _budget_s


def retrying(call: Callable[[], T], uri: str, renew: Callable[[], None] | None = None) -> T:
    """Run one store call within the retry budget; `renew` gets new credentials when the old are refused.

    Raises TryLater when the budget is used up or the credentials are still refused, UsageError if there are none.
    """
    tries = _Tries(uri)
    try:
        return tries.run(lambda: _authorised(lambda: _with_turn(call, tries.left_s()), renew))
    except OSError as error:
        if _is_refused(error):
            raise TryLater(f"credentials refused for {uri}: {error_code(error)}; renew them and rerun") from error
        raise
    except Exception as error:
        if type(error).__name__ in _NO_CREDENTIALS:
            raise UsageError(f"no credentials for {uri}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        raise


def _with_turn(call: Callable[[], T], patience_s: float) -> T:
    with _limiter.turn(patience_s):
        return call()


def _authorised(call: Callable[[], T], renew: Callable[[], None] | None) -> T:
    try:
        return call()
    except OSError as error:
        if renew is None or not _is_refused(error):
            raise
    renew()
    return call()


# --- what an error means -----------------------------------------------------------------------


def error_code(error: BaseException | None) -> str | None:
    """The S3 error code behind an exception, if there is one."""
    response = _response(error)
    return None if response is None else str(response["Error"].get("Code"))


def _response(error: BaseException | None) -> dict[str, Any] | None:
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return response
        error = error.__cause__
    return None


def _status(response: dict[str, Any]) -> int | None:
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(status) if status else None


def is_transient(error: BaseException) -> bool:
    """Whether waiting may help: faults of network, server or machine, not a missing or forbidden object."""
    if isinstance(error, BatchprojError):  # of a call inside this one, which has waited enough
        return False
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    response = _response(error)
    if response is not None:
        return error_code(error) in _TRANSIENT_CODES or _status(response) in _TRANSIENT_STATUS
    # only now: s3fs says EIO of any answer that it does not know
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        return True
    return any(parent.__name__ in _NETWORK_ERRORS for parent in type(error).__mro__)


def is_busy(error: BaseException) -> bool:
    """Whether the store asks for fewer requests."""
    response = _response(error)
    return response is not None and (error_code(error) in _BUSY_CODES or _status(response) in _BUSY_STATUS)


def is_cut(error: BaseException) -> bool:
    """Whether the store answered, and its answer ended too soon."""
    return any(parent.__name__ in _CUT for parent in type(error).__mro__)


def _is_refused(error: BaseException) -> bool:
    return error_code(error) in _CREDENTIAL_CODES


# --- waiting for a store that is away ----------------------------------------------------------


class _Tries:
    """The tries of one store call, and since when they fail."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._budget_s = _budget_s
        self._failing_since: float | None = None
        self._began = 0.0

    def run(self, once: Callable[[], T]) -> T:
        """Without tenacity while nothing fails: its loop takes ten times as long as to read a small file (measured)."""
        self._began = time.monotonic()
        try:
            return once()
        except Exception as error:
            if not is_transient(error):
                raise
            return self._again(once, error)

    def _again(self, once: Callable[[], T], first: Exception) -> T:
        """The rest of the tries; `first` is how the one before them failed."""
        failed = [first]

        def begin() -> T:
            if failed:
                raise failed.pop()
            self._began = time.monotonic()
            return once()

        def failing(error: BaseException) -> bool:
            if is_transient(error):
                self._failed(error)
                return True
            return False

        tenacious = Retrying(
            retry=retry_if_exception(failing),
            wait=wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_S),
            stop=lambda _: self.left_s() <= 0,
            sleep=_sleep,
            reraise=True,
        )
        try:
            result = tenacious(begin)
        except BaseException as error:
            gave_up = is_transient(error)
            self._ended(answered=isinstance(error, Exception) and not gave_up)
            if gave_up:
                raise self._away(error) from error
            raise
        self._ended(answered=True)
        return result

    def left_s(self) -> float:
        failing_s = 0.0 if self._failing_since is None else time.monotonic() - self._failing_since
        return max(0.0, self._budget_s - failing_s)

    def _failed(self, error: BaseException) -> None:
        if self._failing_since is None:
            self._failing_since = self._began  # a store that hangs is away since it was asked
        _pauses.failed(self, self._failing_since, f"{type(error).__name__}, {self._uri}", self._budget_s)

    def _ended(self, answered: bool) -> None:
        if self._failing_since is not None:
            _pauses.ended(self, answered)

    def _away(self, error: BaseException) -> TryLater:
        if isinstance(error, OSError) and error.errno == errno.EIO and _response(error) is None:
            return DiskFault(
                f"storage is away: {self._uri} could not be read for {self._budget_s:.0f} s ({error.strerror}); check "
                "the disk and run the same command again"
            )
        return TryLater(
            f"storage is away: {self._uri} did not answer for {self._budget_s:.0f} s ({type(error).__name__}); "
            "run the same command again when it is back"
        )


def _sleep(seconds: float) -> None:
    """Sleep in short pieces, so that the watchers hear in time."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check_abandoned()
        time.sleep(min(left, 0.5))
        _pauses.tell()


class _Pauses:
    """What the watchers hear while calls fail: one line at a time for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: list[Watcher] = []
        self._failing: dict[_Tries, float] = {}
        self._cause = ""
        self._budget_s = 0.0
        self._told_at: float | None = None
        self._away_since = 0.0

    @contextmanager
    def watched_by(self, watcher: Watcher) -> Iterator[None]:
        with self._lock:
            self._watchers.append(watcher)
        try:
            yield
        finally:
            with self._lock:
                self._watchers.remove(watcher)

    def failed(self, tries: _Tries, since: float, cause: str, budget_s: float) -> None:
        with self._lock:
            self._failing.setdefault(tries, since)
            self._cause, self._budget_s = cause, budget_s
        self.tell()

    def tell(self) -> None:
        now = time.monotonic()
        with self._lock:
            if not self._failing or (self._told_at is not None and now - self._told_at < LINE_EVERY_S):
                return
            since = min(self._failing.values())
            if now - since < FIRST_LINE_AFTER_S:
                return
            self._told_at, self._away_since = now, since
            watchers = self._watchers[-1:]
            waits = f"waiting since {now - since:.0f} s, up to {self._budget_s:.0f} s"
            line = f"storage does not answer: {waits} ({self._cause})"
        for watcher in watchers:
            watcher(line)

    def ended(self, tries: _Tries, answered: bool) -> None:
        now = time.monotonic()
        with self._lock:
            del self._failing[tries]
            told = self._told_at is not None
            if answered:
                # the others still sleep and know nothing of it: their clocks start anew
                self._failing = {other: now if told else since for other, since in self._failing.items()}
            if answered or not self._failing:
                self._told_at = None
            watchers = self._watchers[-1:] if answered and told else []
            line = f"storage answers again: after {now - self._away_since:.0f} s"
        for watcher in watchers:
            watcher(line)


_pauses = _Pauses()


def watch_pauses(watcher: Watcher) -> AbstractContextManager[None]:
    """While the context is open, `watcher` gets a line when storage does not answer and when it does again,
    and those who watched before get none.

    All store calls of the process count; lines come from the threads that wait, at most one in `LINE_EVERY_S`.
    """
    return _pauses.watched_by(watcher)


# --- sparing a store that is busy --------------------------------------------------------------


class Limiter:
    """How many calls run at once: half as many when the store says it is busy, one more after 32 that went well.

    Only a call that began after the last cut can cut again: one burst of refusals counts once.
    """

    def __init__(self, most: int = CALLS_AT_ONCE) -> None:
        self._most = most
        self.limit = most
        self._running = 0
        self._went_well = 0
        self._cuts = 0
        self._changed = threading.Condition()
        self._this_thread = threading.local()

    @contextmanager
    def turn(self, patience_s: float) -> Iterator[None]:
        """Hold one of the places; raises TimeoutError if none gets free."""
        if getattr(self._this_thread, "has_turn", False):  # a call inside a call would wait for itself
            yield
            return
        with self._changed:
            if not self._changed.wait_for(lambda: self._running < self.limit, patience_s):
                raise TimeoutError("the calls before this one do not end")
            self._running += 1
            cuts = self._cuts
        self._this_thread.has_turn = True
        try:
            yield
        except BaseException as error:
            self._end(cuts, went_well=False, busy=is_busy(error))
            raise
        else:
            self._end(cuts, went_well=True, busy=False)
        finally:
            self._this_thread.has_turn = False

    def _end(self, cuts: int, went_well: bool, busy: bool) -> None:
        with self._changed:
            self._running -= 1
            if busy and cuts == self._cuts:
                self.limit = max(1, self.limit // 2)
                self._cuts += 1
                self._went_well = 0
            elif went_well and self.limit < self._most:
                self._went_well += 1
                if self._went_well == CALLS_AT_ONCE:
                    self.limit += 1
                    self._went_well = 0
            self._changed.notify_all()


_limiter = Limiter()
