"""Bring a collection to a space that was trained on it, if the space's own card speaks for it."""

from __future__ import annotations

from batchproj.card import read_card
from batchproj.collection.ledger import Report
from batchproj.embed import Options, Watch, embed
from batchproj.errors import UsageError
from batchproj.recipe import Recipe
from batchproj.search import Collection
from batchproj.space import open_space, resolve


def promote(uri: str, space: str, watch: Watch, verbose: bool = False) -> Report:
    """Project the live source's cached features again with a space that `train` wrote.

    Raises UsageError, with nothing written to the collection, if the card names a shortcoming.
    """
    card = read_card(space)
    if card.get("reverse"):
        raise UsageError(f"{space} holds projectors of train --reverse, no space to bring a collection to")
    if "adapts" in card:
        raise UsageError(f"{space} is a bridge of train --adapter, for queries; no space to bring a collection to")
    found = [
        f"{modality}: {said}" for modality, trained in card["modality"].items() for said in trained["shortcomings"]
    ]
    live = Collection(uri).snapshot
    if found:
        raise UsageError(
            f"not promoted: {'; '.join(found)}; the collection is as it was, the space and its report are in {space}; "
            f"to use it all the same: batchproj embed {live.source} {uri} --space {space}"
        )
    # the limits of the run that is live: with others, items would be decided upon anew
    options = Options(Recipe(limits=live.limits), verbose=verbose)
    return embed(live.source, uri, resolve(open_space(space)), options, watch)
