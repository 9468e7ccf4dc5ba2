"""The end of a session of Ray: nobody calls its core any more, and signals are answered afterwards."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from batchproj.pipeline import _undisturbed


def told_by(script: str) -> object:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


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


def test_a_process_that_reads_outlives_the_time_between_two_units() -> None:
    """Ray would start another, beside an actor that holds the CPUs, and that takes longer than to read a unit."""
    script = """if True:
        import json, os, time
        import ray
        from batchproj.pipeline import ray_session

        class Embedding:
            def ready(self):
                return True

        def read():
            return os.getpid()

        with ray_session(False):
            actor = ray.remote(num_cpus=ray.cluster_resources()["CPU"] - 0.5)(Embedding).remote()
            ray.get(actor.ready.remote())
            reading = ray.remote(num_cpus=0.5)(read)
            first = ray.get(reading.remote())
            time.sleep(4)  # Ray's own patience is a second
            print(json.dumps(ray.get(reading.remote()) == first))
    """
    assert told_by(script) is True


def test_memory_that_a_step_gives_back_is_kept_for_the_next_one() -> None:
    """In a thread, as networks are run: the kernel would clear the pages of 40 MB again each time."""
    script = """if True:
        import json, resource
        from concurrent.futures import ThreadPoolExecutor
        import ray
        from batchproj.pipeline import ray_session

        def faults():
            def step():
                before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
                b"1" * 40_000_000
                return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

            with ThreadPoolExecutor(1) as pool:
                return [pool.submit(step).result() for _ in range(3)]

        with ray_session(False):
            print(json.dumps(ray.get(ray.remote(faults).remote())))
    """
    _, second, third = told_by(script)
    pages = 40_000_000 // resource.getpagesize()
    assert max(second, third) < pages / 10


@pytest.mark.parametrize("when", ["while a thread is waited for", "while Ray ends"])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_at_the_end_of_a_session_is_answered_when_ray_is_shut_down(number: str, when: str) -> None:
    """Ray's core takes Python's handler for SIGTERM away for that time: the process would end without a word."""
    is_early = when == "while a thread is waited for"
    script = f"""if True:
        import ctypes, json, os, signal, threading, time
        import ray
        from batchproj import pipeline

        told = {{"order": []}}

        def shutdown():
            told["order"].append("shut down")
            if signal.{number} == signal.SIGTERM:
                ctypes.CDLL(None).signal(signal.SIGTERM, 0)  # as Ray's core does: Python still names its handler
            if not {is_early}:
                time.sleep(0.3)
                os.kill(os.getpid(), signal.{number})
                time.sleep(0.3)
            told["order"].append("is down")

        def answer(*_):
            told["order"].append("answered")

        def wanted():
            while signal.getsignal(signal.{number}) is answer:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.{number})
            time.sleep(0.5)

        ray.shutdown = shutdown
        signal.signal(signal.{number}, answer)
        if {is_early}:
            threading.Thread(target=wanted, name="iter_threaded", daemon=True).start()
        pipeline._undisturbed(pipeline._close)
        told["waited"] = all(each.name != "iter_threaded" for each in threading.enumerate())
        print(json.dumps(told))
    """
    assert told_by(script) == {"order": ["shut down", "is down", "answered"], "waited": True}


def test_a_session_that_does_not_end_keeps_no_signal_for_ever() -> None:
    script = """if True:
        import json, os, signal, threading
        from batchproj import pipeline

        signal.signal(signal.SIGINT, signal.default_int_handler)  # not there where tests run in the background
        pipeline.CLOSING_S = 1.0
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            pipeline._undisturbed(threading.Event().wait)
        except KeyboardInterrupt:
            print(json.dumps("answered"), flush=True)
            os._exit(0)
    """
    assert told_by(script) == "answered"


def test_what_goes_wrong_while_ray_is_shut_down_is_told() -> None:
    def failing() -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        _undisturbed(failing)
