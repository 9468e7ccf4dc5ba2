"""Bring a collection up to date again with the source and the space that it has, as a schedule does:

    python jobs/reembed.py RECIPE COLLECTION [flags of `batchproj embed`]

RECIPE is a path or URL. The space is the live run's, unless the recipe or a flag names another.
"""

from __future__ import annotations

from command import run


def command(recipe: str, collection: str, *flags: str) -> list[str]:
    from batchproj.search import Collection

    return ["embed", Collection(collection).snapshot.source, collection, "--recipe", recipe, *flags]


if __name__ == "__main__":
    run(str(__doc__), 2, command)
