"""Names of everything in a collection's folder."""

from __future__ import annotations

TABLE = "vectors"  # the Lance table `vectors.lance`
TAGS = "vectors.lance/_refs/tags"  # the files behind the tags
STORE = "store.json"  # what the store can be relied on for
FORGOTTEN = "forgotten"  # a folder; names are the ids of items that must never come back
BALANCE = "balance"  # a folder; names are fingerprints of spaces
EVALUATIONS = "evaluations"  # a folder; names are runs
LIVE = "live"  # the one pointer: a tag on a version of that table
LOCK = "lock.json"  # the heartbeat of whoever holds the collection


def part(name: str) -> str:
    return f"parquet/{name}.parquet"


def features(feature_fp: str, name: str) -> str:
    return f"features/{feature_fp}/{name}.parquet"


def units(run: str) -> str:
    return f"units/{run}"


def unit_file(run: str, unit: str, file: str) -> str:
    return f"units/{run}/{unit}/{file}"


def snapshot(run: str) -> str:
    return f"snapshots/{run}.json"


def manifest(run: str) -> str:
    return f"snapshots/{run}.manifest.parquet"


def quarantine(run: str) -> str:
    return f"quarantine/{run}.parquet"


def ledger(run: str) -> str:
    return f"runs/{run}.json"


def space(fingerprint: str) -> str:
    return f"spaces/{fingerprint}"


def balance(space: str) -> str:
    return f"{BALANCE}/{space}.json"


def evaluation(run: str) -> str:
    return f"{EVALUATIONS}/{run}.json"


def log(number: int) -> str:
    return f"log/{number:08d}.json"


def run_tag(run: str) -> str:
    return f"run-{run}"
