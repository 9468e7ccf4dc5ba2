"""Bring a collection up to date with a source, as a recipe says:

    python jobs/embed.py RECIPE SOURCE COLLECTION [flags of `batchproj embed`]

RECIPE is a path or URL. A space that the recipe names counts unless a flag names another.
"""

from __future__ import annotations

from command import run


def command(recipe: str, source: str, collection: str, *flags: str) -> list[str]:
    return ["embed", source, collection, "--recipe", recipe, *flags]


if __name__ == "__main__":
    run(str(__doc__), 3, command)
