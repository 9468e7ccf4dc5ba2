"""Judge a collection by the pairs that nobody trained on:

python jobs/evaluate.py COLLECTION [flags of `batchproj evaluate`]
"""

from __future__ import annotations

from command import run


def command(collection: str, *flags: str) -> list[str]:
    return ["evaluate", collection, *flags]


if __name__ == "__main__":
    run(str(__doc__), 1, command)
