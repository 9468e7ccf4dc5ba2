"""The end of a session of Ray: nobody calls its core any more, and no signal is lost. Each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def told_by(script: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_ray_is_shut_down_when_the_threads_that_call_it_have_ended() -> None:
    """One that comes after it ends the process with 1: a run that was stopped while it looked at a unit's receipt."""
    script = """if True:
        import json, threading, time
        import ray.data
        from batchproj.pipeline import ray_session

        def calling():
            return any(each.name == "iter_threaded" for each in threading.enumerate())

        def slow(row):
            time.sleep(0.5)
            return row

        def shut_down():
            told["at the end"] = calling()
            really()

        told, really, ray.shutdown = {}, ray.shutdown, shut_down
        try:
            with ray_session(False):
                for _ in ray.data.range(40, override_num_blocks=40).map(slow).iter_rows():
                    told["while it is read"] = calling()
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            print(json.dumps(told))
    """
    assert told_by(script) == {"while it is read": True, "at the end": False}


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_while_ray_is_shut_down_is_answered_afterwards(number: str) -> None:
    """Ray's core takes Python's handler away for that time: the process would end without a word."""
    script = f"""if True:
        import ctypes, json, os, signal, time
        from batchproj import pipeline

        told = {{"answered": [], "through": False}}

        def shutdown():
            ctypes.CDLL(None).signal(signal.{number}, 0)  # as Ray's core does: Python still names its handler
            time.sleep(0.3)
            os.kill(os.getpid(), signal.{number})
            time.sleep(0.3)
            told["through"] = told["answered"] == []

        signal.signal(signal.{number}, lambda *_: told["answered"].append("{number}"))
        pipeline._shut_down(shutdown)
        print(json.dumps(told))
    """
    assert told_by(script) == {"answered": [number], "through": True}
