"""How fast the service answers many at once: p50, p95 and p99 of text searches, and what it turned away.

    python benchmarks/service.py http://127.0.0.1:8000 --clients 50 --seconds 60

Each client asks again as soon as it has its answer, and a second later where it was turned away (429). No two texts
are the same, so that nothing is answered from the cache of vectors. The service's own p95 is in its /metrics; what is
printed here is what a client on the same machine sees, which takes processor time beside the service.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections import Counter

import aiohttp
import numpy as np

WORDS = (
    "red",
    "green",
    "small",
    "large",
    "old",
    "happy",
    "quiet",
    "bright",
    "apple",
    "frog",
    "house",
    "river",
    "cloud",
)


async def ask(url: str, until: float, numbers: itertools.count[int], seconds: list[float], ends: Counter[str]) -> None:
    """One client; `seconds` are those of its answers, `ends` how its requests ended."""
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < until:
            number = next(numbers)
            text = f"a {WORDS[number % len(WORDS)]} {WORDS[number * 7 % len(WORDS)]} number {number}"
            begun = time.perf_counter()
            async with session.post(f"{url}/search", json={"text": text, "k": 10}) as answer:
                told = await answer.read()
            ends[str(answer.status)] += 1
            if answer.status == 200:
                seconds.append(time.perf_counter() - begun)
                assert len(json.loads(told)["hits"]) > 0
            elif answer.status == 429:
                await asyncio.sleep(float(answer.headers["Retry-After"]))


async def measure(url: str, clients: int, seconds: float, first: int = 0) -> dict[str, object]:
    """What `clients` saw in so many seconds; texts are numbered from `first` on."""
    taken: list[float] = []
    ends: Counter[str] = Counter()
    numbers, begun = itertools.count(first), time.monotonic()
    await asyncio.gather(*(ask(url, begun + seconds, numbers, taken, ends) for _ in range(clients)))
    quantiles = {f"p{q}_ms": round(1000 * float(np.quantile(taken, q / 100)), 1) for q in (50, 95, 99)} if taken else {}
    per_s = round(len(taken) / (time.monotonic() - begun), 1)
    return {"clients": clients, "answers": dict(ends), "answers_per_s": per_s, **quantiles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    asked = parser.parse_args()
    print(json.dumps(asyncio.run(measure(asked.url.rstrip("/"), asked.clients, asked.seconds))))


if __name__ == "__main__":
    main()
