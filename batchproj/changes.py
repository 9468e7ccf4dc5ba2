"""What a source holds now against what is live: the comparison, and what it must not lead to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import duckdb

from batchproj import retry
from batchproj.collection import containers, layout, manifest
from batchproj.collection.plan import Counts, Plan
from batchproj.collection.snapshot import Fingerprints, Snapshot, read_snapshot
from batchproj.errors import CollectionError, DamagedFile, SourceError, UsageError
from batchproj.objectstore import Folder, canonical, seen_from
from batchproj.schema import Modality
from batchproj.source.listing import Seal, list_items
from batchproj.source.place import row_address
from batchproj.space import ResolvedSpace
from batchproj.tags import Tags

MASS_DELETE = 0.2
"""Share of the items that may vanish from a listing before we ask whether that is meant."""


def check_places(source: str, folder: Folder) -> None:
    """Raises UsageError if a collection would embed itself."""
    root = canonical(source)
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
    roots: Sequence[str],
    say: Callable[[str], None],
) -> Counts:
    """List the source and lay it against the live manifest; nothing is written.

    `roots` are the folders that tables may name objects in, beside their own. Raises SourceError if the
    source cannot be listed, has two rows of one id, or is empty before the first run.
    """
    listed = 0
    unread = []
    for page in list_items(source, seen_from(source, folder.uri), roots, live.sealed if live else {}):
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
    if live is not None:
        _load_live(plan, folder, live)
        containers.list_again(plan, unread)
        for run in Tags(folder).runs():
            if run > live.run:
                # collected meanwhile, or damaged: only a saving
                with suppress(FileNotFoundError, CollectionError, DamagedFile, duckdb.Error):
                    plan.load_later(_manifest(plan, folder, read_snapshot(folder, run)))
    plan.forget(folder.names(layout.FORGOTTEN))
    if (double := containers.double(plan)) is not None:
        uri, place, first, second = double
        rows = " and ".join(f"{int(key.rpartition('#')[2]):,}" for key in (first, second))
        raise SourceError(f"{row_address(uri, place)} is there twice, in rows {rows}; an id must name one row")
    return plan.decide(live.limits if live else None)


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
        pages = list_items(live.source, seen_from(live.source, folder.uri), roots)
        with suppress(SourceError):  # what is gone with the source is quarantined when it is read, as objects are
            containers.place_anew(plan, (page for page in pages if not isinstance(page, Seal)))
    return plan.decide(live.limits, retry=False)


def _load_live(plan: Plan, folder: Folder, live: Snapshot) -> None:
    plan.load_manifest(_manifest(plan, folder, live))
    plan.know_features(live.features)


def _manifest(plan: Plan, folder: Folder, snapshot: Snapshot) -> str:
    return manifest.rows(manifest.fetch(folder, snapshot, plan.scratch))


def mass_delete(counts: Counts, live: Snapshot | None) -> str | None:
    """Why so many items must not just be deleted: more likely a wrong source or a mount that is away."""
    gone = counts.deleted - counts.moved - counts.forgotten
    if live is None or gone + counts.faulty <= MASS_DELETE * live.listed:
        return None
    vanished = f"{gone:,} of {live.listed:,} items are no longer in the source"
    if counts.faulty:
        vanished += f", and {counts.faulty:,} rows name objects that are gone or below no root of the recipe"
    return f"{vanished}; nothing was deleted; if that is meant, run again with --allow-mass-delete"
