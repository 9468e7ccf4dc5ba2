"""Why an item has the vectors it has: its bytes, models, projector and run, or why it has none."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict
from rich.filesize import decimal

from batchproj.collection import layout, lookup, manifest
from batchproj.collection.snapshot import Snapshot
from batchproj.collection.unit import read_rows
from batchproj.errors import BatchprojError, CollectionError, ItemFault, UsageError
from batchproj.index import live_snapshot
from batchproj.objectstore import BAD_NAME, Folder, canonical, list_objects
from batchproj.source.listing import version_now
from batchproj.source.objects import item_id
from batchproj.source.place import FAULT, OBJECT, film_row, parse_place, row_address
from batchproj.source.reading import read_items
from batchproj.space import open_space

Now = Literal["unchanged", "changed since", "gone", "cannot tell"]

NEAREST = 3
SIMILAR = 0.8
"""Jaro-Winkler similarity from which on a file name may be the one that was meant."""

_NEAREST = f"""
SELECT uri FROM ({{rows}}) WHERE jaro_winkler_similarity(parse_filename(uri), ?) >= {SIMILAR}
ORDER BY jaro_winkler_similarity(parse_filename(uri), ?) DESC, jaro_winkler_similarity(uri, ?) DESC, uri LIMIT {NEAREST}
"""


class Explanation(BaseModel):
    """What the live run knows of one item; `explain --json` prints these fields.

    `run` is the live run and `made_by` the one that made the vectors. `now` compares the object
    with the `source_version` that was read. `row` is the URI of a table's row or a shard's member, also
    where that names an object. Of an item in quarantine `reason`, `detail` and `stage`
    (read, decode or encode) say why, and what only vectors have is None. The `detail` of an embedded one
    is what its name promises in vain (a PNG called .jpg).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    item: str
    uri: str
    pair: str | None
    status: Literal["embedded", "quarantined"]
    modality: str | None
    segments: int
    size: int
    source_version: str
    content_id: str | None
    row: str | None
    metadata: str | None
    now: Now
    run: str
    space: str
    made_by: str | None
    part: str | None
    features: str | None
    encoder: dict[str, Any] | None
    projector: dict[str, Any] | None
    reason: str | None
    detail: str | None
    stage: str | None


def explain(collection_uri: str, item_uri: str) -> Explanation:
    """Look an item up in the live run, by its URI or path.

    Raises CollectionError if there is no collection, UsageError if it has no such item.
    """
    folder = Folder(collection_uri)
    live = live_snapshot(folder)
    if live is None:
        raise CollectionError(
            f"no collection at {collection_uri}; expected one made by: batchproj embed SOURCE {collection_uri}"
        )
    row = _manifest_row(folder, live, canonical(item_uri))
    is_embedded = row["status"] == "embedded"
    made = live.fingerprints[row["modality"]] if is_embedded else None
    return Explanation(
        **{name: row[name] for name in ("item", "uri", "pair", "status", "modality", "size", "source_version")},
        segments=row["segments"] or 0,
        content_id=row["content_id"],
        row=row_address(row["uri"], row.get("place")) if row.get("place") else None,
        metadata=row.get("metadata"),
        now=_now(row),
        run=live.run,
        space=open_space(f"{folder.uri}/{layout.space(live.space)}").space.name,
        made_by=_made_by(folder, live, row["part"], row["item"]) if is_embedded else None,
        part=layout.part(row["part"]) if is_embedded else None,
        features=layout.features(row["feature_fp"], row["features"]) if is_embedded else None,
        encoder=made.feature_doc if made else None,
        projector=made.vector_doc if made else None,
        reason=row["reason"],
        detail=row["detail"],
        stage=row["stage"],
    )


def _manifest_row(folder: Folder, live: Snapshot, uri: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="batchproj-explain-") as scratch, duckdb.connect() as db:
        rows = manifest.rows(manifest.fetch(folder, live, Path(scratch)))
        if (found := lookup.find(db, rows, uri)) is not None:
            return found
        if folder.exists(f"{layout.FORGOTTEN}/{item_id(uri)}"):
            raise UsageError(f"{uri} was forgotten: nothing of it is left in {folder.uri}, it is not embedded again")
        name = uri.rpartition("/")[2]
        nearest = [near for (near,) in db.execute(_NEAREST.format(rows=rows), [name, name, uri]).fetchall()]
    hint = f"nearest are {', '.join(nearest)}" if nearest else f"expected an item of {live.source}"
    raise UsageError(f"run {live.run} of {folder.uri} has no item {uri}; {hint}")


def _made_by(folder: Folder, live: Snapshot, name: str, item: str) -> str:
    part = next(part for part in live.parts if part.name == name)
    rows = read_rows(folder, layout.part(name), part.sha256)
    run: str = rows.filter(pc.equal(rows["item"], item))["run"][0].as_py()
    return run


def _now(row: Mapping[str, Any]) -> Now:
    """Whether the item is still the one that was read; a store that does not answer is no error here."""
    row = film_row(row)
    place = parse_place(row["place"]) if row.get("place") else None
    if place is None or place.kind == OBJECT:
        return _object_now(row["uri"], row["source_version"])
    if place.kind == FAULT:
        return "cannot tell"
    try:
        # an old version of a Lance table can still be read: that says nothing of the newest
        if place.kind != "lance" and not isinstance(read_items([row], row["size"], 1)[0], ItemFault):
            return "unchanged"
        version = version_now(row["item"], row["uri"], place)
    except FileNotFoundError:
        return "gone"
    except (BatchprojError, OSError):
        return "cannot tell"
    if version is None:
        return "gone"
    return "unchanged" if version == row["source_version"] else "changed since"


def _object_now(uri: str, version: str) -> Now:
    if version == BAD_NAME:
        return "cannot tell"
    try:
        listed = (each for page in list_objects(_literal(uri)) for each in page if each.uri == uri)
        found = next(listed, None)
    except BatchprojError as error:
        return "gone" if isinstance(error.__cause__, FileNotFoundError) else "cannot tell"
    if found is None:
        return "gone"
    return "unchanged" if found.version == version else "changed since"


def _literal(uri: str) -> str:
    """A URI for a listing that must not take `*`, `?` and `[` in it for wildcards; files are taken as they are."""
    if uri.startswith("file://"):
        return uri
    return "".join(f"[{char}]" if char in "*?[" else char for char in uri)


# --- for the terminal ----------------------------------------------------------------------------


def lines(explanation: Explanation) -> list[str]:
    """The explanation in a few lines: the verdict first."""
    pair = f", pair {explanation.pair}" if explanation.pair else ""
    if explanation.row is not None and explanation.stage == "read" and not explanation.size:
        described = "object    none was read: no bytes, no model and no version are known of it"
    else:
        described = f"object    {decimal(explanation.size)}, version {explanation.source_version}, {explanation.now}"
    row = [f"row       {explanation.row}"] if explanation.row not in (None, explanation.uri) else []
    metadata = [f"metadata  {explanation.metadata}"] if explanation.metadata else []
    details = [described, *row, *metadata]
    content = [f"content   sha256 {explanation.content_id}"] if explanation.content_id else []
    if explanation.status == "quarantined":
        why = f"{explanation.reason}, {explanation.detail} (stage: {explanation.stage})"
        return [f"{explanation.uri} is in quarantine: {why}", *details, *content, f"run       {explanation.run}"]
    note = [f"note      {explanation.detail}; embedded as what it is"] if explanation.detail else []
    vectors = f"{explanation.segments:,} {explanation.modality} vector{'' if explanation.segments == 1 else 's'}"
    return [
        f"{explanation.uri} is embedded: {vectors}{pair}",
        *note,
        *details,
        *content,
        f"run       made by {explanation.made_by}, live is {explanation.run}, space {explanation.space}",
        f"encoder   {_document(explanation.encoder)}",
        f"projector {_document(explanation.projector)}",
        f"part      {explanation.part}",
        f"features  {explanation.features}",
    ]


def _document(document: dict[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (document or {}).items())
