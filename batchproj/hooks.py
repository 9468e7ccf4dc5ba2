"""Who is told how a run ended: a web hook, by POST, or a command, on its stdin; both get one JSON document.

A hook changes nothing about the run: one that fails is a line, not an error.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from typing import Any

import requests

from batchproj.credentials import masked
from batchproj.errors import UsageError

TRIES = 3
ANSWER_S = 10.0
COMMAND_S = 60.0
STDERR = 2
"""Where a command's own output goes: stdout is the result's."""


def check_hook(hook: str, option: str) -> None:
    """Raises UsageError for what could not be called: better before the run than after it."""
    if _is_url(hook):
        return
    try:
        words = shlex.split(hook)
    except ValueError as error:
        raise UsageError(f"{option}: '{hook}' is no command: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise UsageError(f"{option}: no program '{words[0] if words else ''}'; expected a command, or an http(s) URL")


def call_hook(hook: str, document: dict[str, Any]) -> str | None:
    """Tell a hook; why it could not be told, in one line, or None."""
    return _post(hook, document) if _is_url(hook) else _run(hook, document)


def _is_url(hook: str) -> bool:
    return hook.startswith(("http://", "https://"))


def _post(url: str, document: dict[str, Any]) -> str | None:
    said = ""
    for number in range(TRIES):
        time.sleep(number)
        try:
            answer = requests.post(url, json=document, timeout=ANSWER_S, allow_redirects=False)
        except requests.exceptions.RequestException as error:
            said = type(error).__name__  # its text may hold the URL, and that a secret
            continue
        if answer.ok and not answer.is_redirect:
            return None
        said = f"it answers {answer.status_code}"
        if answer.status_code < 500:
            break
    return f"the web hook at {masked(url).split('/')[2]} was not told: {said}"


def _run(command: str, document: dict[str, Any]) -> str | None:
    words = shlex.split(command)
    try:
        done = subprocess.run(
            words, input=json.dumps(document), text=True, stdout=STDERR, timeout=COMMAND_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the hook {words[0]} was not told: {type(error).__name__}"
    return f"the hook {words[0]} ended with {done.returncode}" if done.returncode else None
