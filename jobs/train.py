"""Train projectors on a collection's pairs, as the `train` of a recipe says:

    python jobs/train.py RECIPE COLLECTION SPACE [flags of `batchproj train`]

RECIPE is a path or URL, SPACE the folder of the new space: a URL, where there are several nodes.
"""

from __future__ import annotations

from command import run


def command(recipe: str, collection: str, space: str, *flags: str) -> list[str]:
    from batchproj.recipe import load_recipe

    told = load_recipe(recipe).train.model_dump(exclude_none=True)
    promote = ["--promote"] if told.pop("promote") else []
    options = [word for name, value in told.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["train", collection, "--out", space, *options, *promote, *flags]


if __name__ == "__main__":
    run(str(__doc__), 3, command)
