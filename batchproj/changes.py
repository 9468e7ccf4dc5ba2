"""What a source holds now against what is live: the comparison, and what it must not lead to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import duckdb

from batchproj import retry
from batchproj.collection import containers, layout, manifest
from batchproj.collection.plan import Counts, Plan
from batchproj.collection.snapshot import Fingerprints, Snapshot, read_snapshot
from batchproj.decode.extensions import is_film
from batchproj.errors import CollectionError, DamagedFile, SourceError, UsageError
from batchproj.objectstore import Folder, canonical, seen_from
from batchproj.recipe import Recipe
from batchproj.schema import Modality, Reason
from batchproj.source.listing import Page, Seal, list_items
from batchproj.source.parser import Parser
from batchproj.source.place import row_address
from batchproj.space import ResolvedSpace
from batchproj.tags import Tags

MASS_DELETE = 0.2
"""Share of the items that may vanish from a listing before we ask whether that is meant."""


_ROW_KEY = r".*#(\d+)(?:\.audio)?"
"""Of a row's key, or its film's sound track, the number."""


def check_sound_tracks(recipe: Recipe, space: ResolvedSpace) -> None:
    """Raises UsageError if sound tracks are asked for that nothing could embed."""
    if recipe.sound_tracks and Modality.AUDIO not in space.members:
        raise UsageError(
            f"the recipe has sound_tracks, and space '{space.space.name}' no audio encoder; choose a space with one, "
            "or leave out sound_tracks"
        )


def check_places(source: str, folder: Folder, recipe: Recipe) -> None:
    """Raises UsageError if a collection would embed itself, or a place has credentials in its URL."""
    root = canonical(source)
    for declared in recipe.roots:  # a folder has no use for them, but they must have no secrets in them anywhere
        canonical(declared)
    if root == folder.uri:
        raise UsageError(f"source and collection are the same folder, {root}; choose another collection")
    if (root + "/").startswith(folder.uri + "/"):
        raise UsageError(f"the source {source} lies inside the collection {folder.uri}; choose another collection")


def fingerprints_of(space: ResolvedSpace) -> dict[Modality, Fingerprints]:
    """What a run with this space would make its features and vectors by."""
    return {
        modality: Fingerprints(
            feature=member.feature_fp,
            vector=member.vector_fp,
            feature_doc=member.feature_doc,
            vector_doc=member.vector_doc,
        )
        for modality, member in space.members.items()
    }


def compare(
    plan: Plan,
    source: str,
    folder: Folder,
    live: Snapshot | None,
    recipe: Recipe,
    say: Callable[[str], None],
    retry_reasons: Iterable[Reason] = (),
) -> Counts:
    """List the source and lay it against the live manifest; nothing is written.

    What is in quarantine for one of `retry_reasons` is tried again. Raises SourceError if the source cannot be
    listed, has two rows of one id, or is empty before the first run.
    """
    listed = 0
    unread = []
    for page in _listed(source, folder, recipe, live):
        retry.check_abandoned()
        if isinstance(page, Seal):
            plan.sealed[page.key] = page.digest
            unread += [page.key] if page.unread else []
            continue
        plan.add_listing(page)
        listed += page.num_rows
        say(f"listing {source}: {listed:,} items")
    if not listed and live is None:
        raise SourceError(
            f"nothing to embed: no items in {source}; expected objects below a folder or prefix, or rows in a table"
        )
    for root in _collections(plan):
        say(
            f"warning: {root} is a collection of batchproj's, and its files are listed as items; move it out of the "
            "source, or name what to embed by a glob"
        )
    if live is not None:
        _load_live(plan, folder, live)
        containers.list_again(plan, unread)
        if unread:  # their rows are items as well
            say(f"listing {source}: {plan.rows('SELECT count(*) FROM listing')[0][0]:,} items")
        for run in Tags(folder).runs():
            if run > live.run:
                # collected meanwhile, or damaged: only a saving
                with suppress(FileNotFoundError, CollectionError, DamagedFile, duckdb.Error):
                    plan.load_later(_manifest(plan, folder, read_snapshot(folder, run)))
    plan.forget(folder.names(layout.FORGOTTEN))
    if (double := containers.double(plan)) is not None:
        uri, place, first, second = double
        address, numbers = row_address(uri, place), [re.fullmatch(_ROW_KEY, key) for key in (first, second)]
        if not all(numbers):
            raise SourceError(f"{address} is an object's name and that of a film's sound track; rename the object")
        rows = " and ".join(f"{int(number[1]):,}" for number in numbers if number)
        raise SourceError(f"{address} is there twice, in rows {rows}; an id must name one row")
    return plan.decide(live, retry_reasons)


_LOG, _LOCK = f"/{layout.log(1)}", f"/{layout.LOCK}"
_COLLECTIONS = f"""
SELECT root FROM (SELECT left(uri, -{len(_LOG)}) AS root FROM listing WHERE suffix(uri, '{_LOG}'))
SEMI JOIN (SELECT left(uri, -{len(_LOCK)}) AS root FROM listing WHERE suffix(uri, '{_LOCK}')) USING (root) ORDER BY root
"""


def _collections(plan: Plan) -> list[str]:
    """Roots of other collections whose files are in the listing; the one being written is never listed."""
    return [root for (root,) in plan.rows(_COLLECTIONS)]


def _listed(source: str, folder: Folder, recipe: Recipe, live: Snapshot | None) -> Iterator[Page]:
    sealed = live.sealed if live else {}
    films = is_film if recipe.sound_tracks else None
    with Parser(recipe.limits.table_bytes, recipe.limits.decode_s) as parser:
        yield from list_items(source, seen_from(source, folder.uri), recipe.roots, sealed, films, parser)


def compare_with_itself(
    plan: Plan, folder: Folder, live: Snapshot, without: Sequence[str] = (), roots: Sequence[str] | None = None
) -> Counts:
    """Take the live items, but for what these markers cover, for the listing: only what `plan.redo` names is done.

    With `roots` the source is listed all the same, if it is there, to see where in its tables the rows are by now.
    """
    _load_live(plan, folder, live)
    plan.list_manifest()
    plan.sealed = dict(live.sealed)
    plan.forget(list(without))
    if roots is not None and containers.has_places(plan):
        pages = list_items(live.source, seen_from(live.source, folder.uri), roots, is_film=is_film)
        with suppress(SourceError):  # what is gone with the source is quarantined when it is read, as objects are
            containers.place_anew(plan, (page for page in pages if not isinstance(page, Seal)))
    return plan.decide(live, retry=None)


def _load_live(plan: Plan, folder: Folder, live: Snapshot) -> None:
    plan.load_manifest(_manifest(plan, folder, live), live.run)
    plan.know_features(live.features)


def _manifest(plan: Plan, folder: Folder, snapshot: Snapshot) -> str:
    return manifest.rows(manifest.fetch(folder, snapshot, plan.scratch))


def mass_delete(counts: Counts, live: Snapshot | None) -> str | None:
    """Why so many items must not just be deleted: more likely a wrong source or a mount that is away."""
    gone = counts.deleted - counts.moved - counts.forgotten
    if live is None or gone + counts.faulty <= MASS_DELETE * live.listed:
        return None
    vanished = f"{gone:,} of {live.listed:,} items are no longer in the source"
    if counts.sound_tracks:
        vanished += f", {counts.sound_tracks:,} sound tracks among them (a recipe with sound_tracks lists those)"
    if counts.faulty:
        vanished += f", and {counts.faulty:,} rows name objects that are gone or below no root of the recipe"
        vanished += ", or are bad_row now"
    return f"{vanished}; nothing was deleted; if that is meant, run again with --allow-mass-delete"
