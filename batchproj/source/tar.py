"""Items that are members of WebDataset shards: tar files, uncompressed, never extracted.

The pair of a member is WebDataset's key, its path up to the first dot of the base name. A `.json`
member beside others of its key is their metadata and no item, one that is no JSON is quarantined there;
by itself, or with a list or one value in it, it is a text. Of members of one name the last counts, as in tar.
`at` of a member is the byte its content begins at, its length, and the version of the tar: whoever
writes the tar again makes all its members other ones, to be read, but not encoded, again.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa

from batchproj.errors import ItemFault, TryLater
from batchproj.objectstore import Listed
from batchproj.schema import Reason, listing_schema
from batchproj.source.metadata import METADATA_BYTES, to_json
from batchproj.source.objects import item_id, pair_key
from batchproj.source.pinned import open_buffered
from batchproj.source.place import Place, fault_place

PAGE_ROWS = 1_000

_GZIP = b"\x1f\x8b"

_KINDS = {
    tarfile.SYMTYPE: "a symbolic link; make the tar anew with what it leads to (tar --dereference --hard-dereference)",
    tarfile.LNKTYPE: "a link; make the tar anew with what it leads to (tar --hard-dereference)",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


_IN_MEMORY = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
"""Headers of headers, which tarfile reads whole: long names, and fields of PAX."""


class _Member(tarfile.TarInfo):
    """A header that refuses to be read if its content is a header again, and larger than any metadata may be."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        if member.type in _IN_MEMORY and member.size > METADATA_BYTES:
            raise tarfile.ReadError(f"a header of {member.size} bytes, more than {METADATA_BYTES}")
        return member


@dataclass
class _Shard:
    """What one pass over a shard's headers gives; of members of one name the last counts, as in tar."""

    members: dict[str, tuple[int, int]] = field(default_factory=dict)  # place and length of the content
    documents: dict[str, str | ItemFault | None] = field(default_factory=dict)
    faults: dict[str, ItemFault] = field(default_factory=dict)


def list_members(shard: Listed) -> list[pa.RecordBatch]:
    """Pages of the members of one shard, in order of their names.

    A shard that ends too early gives the members before that and one row in quarantine. Raises
    TryLater if it is overwritten meanwhile.
    """
    found = _Shard()
    try:
        with open_buffered(shard) as file:
            if file.peek(len(_GZIP)).startswith(_GZIP):
                detail = f"{shard.uri} is compressed with gzip, so its members cannot be read by range; gunzip it"
                found.faults[""] = ItemFault(Reason.UNSUPPORTED_FORMAT, detail)
            else:
                _read_headers(found, file, shard)
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the latter two of numbers beyond any file
        found.faults[""] = ItemFault(Reason.TRUNCATED, f"{shard.uri} is no whole tar: {error}")
    except ItemFault as fault:
        raise TryLater(f"{shard.uri} was overwritten while it was listed; run the same command again") from fault
    rows = list(_rows(shard, found))
    pages = [rows[begin : begin + PAGE_ROWS] for begin in range(0, len(rows), PAGE_ROWS)]
    return [pa.RecordBatch.from_pylist(page, schema=listing_schema()) for page in pages]


def _read_headers(found: _Shard, file: BinaryIO, shard: Listed) -> None:
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as opened:
        for member in _headers(opened):
            _note(found, opened, member, shard.size)
        _check_end(file, opened.offset)


def _headers(opened: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Header after header; contents are passed over, and no header is kept."""
    before = -1
    while (member := opened.next()) is not None:
        if opened.offset <= before or member.size < 0:  # it would go round for ever
            raise tarfile.ReadError(f"the header at byte {member.offset} leads backwards")
        before = opened.offset
        yield member
        opened.members = []  # type: ignore[attr-defined]


def _check_end(file: BinaryIO, at: int) -> None:
    """Raises ReadError unless the headers end with the mark of a whole tar: tarfile stops at anything else as well."""
    file.seek(at)
    if (block := file.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no header at byte {at}" if block else "it has no end mark")


def _note(found: _Shard, opened: tarfile.TarFile, member: tarfile.TarInfo, shard_bytes: int) -> None:
    if member.isdir() or member.offset_data + member.size > shard_bytes:
        return  # the second ends the shard too early: the next header will say so
    name, fault = _checked(member)
    found.members.pop(name, None)
    found.faults.pop(name, None)
    found.documents.pop(name, None)
    if fault is not None:
        found.faults[name] = fault
        return
    found.members[name] = member.offset_data, member.size
    if name.endswith(".json"):
        found.documents[name] = _document(opened, member)


def _checked(member: tarfile.TarInfo) -> tuple[str, ItemFault | None]:
    """A member's path in its plain form, and why it is no item."""
    try:
        member.name.encode()
    except UnicodeEncodeError:
        shown = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return shown, ItemFault(Reason.BAD_NAME, "the member's name is not UTF-8; rename it")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return member.name, ItemFault(Reason.BAD_NAME, "the member's path is absolute or has '..' in it")
    if not member.isreg() or member.issparse():
        return member.name, ItemFault(Reason.UNSUPPORTED_FORMAT, f"the member is {_KINDS.get(member.type, 'no file')}")
    return posixpath.normpath(member.name), None


def _document(opened: tarfile.TarFile, member: tarfile.TarInfo) -> str | ItemFault | None:
    """The metadata that a JSON member holds; None if it is no JSON object, or a large one; or why it is no JSON."""
    if member.size > METADATA_BYTES:
        return None
    content = opened.extractfile(member)
    assert content is not None, member
    try:
        fields = json.loads(content.read())
    except (ValueError, RecursionError) as error:
        return ItemFault(Reason.BAD_ROW, f"the metadata of its pair, but no JSON: {error}; mend it or rename it")
    try:
        return to_json(fields) if isinstance(fields, dict) else None
    except (ValueError, ItemFault):
        return None


def _rows(shard: Listed, found: _Shard) -> Iterator[dict[str, object]]:
    """Rows of the listing, faults last."""
    others = {pair_key(name) for name in found.members if name not in found.documents}
    metadata = {pair_key(name): text for name, text in found.documents.items() if isinstance(text, str)}
    for name, (begun, size) in sorted(found.members.items()):
        pair, document = pair_key(name), found.documents.get(name)
        if document is not None and pair in others:
            if isinstance(document, ItemFault):
                found.faults[name] = document
            continue
        place = Place("tar", (begun, size, shard.version))
        version = hashlib.sha256(json.dumps([shard.version, begun, size]).encode()).hexdigest()[:32]
        yield _row(shard, name, f"{begun:015d}", size, version, place) | {
            "pair": pair,
            "metadata": metadata.get(pair) if name not in found.documents else None,
        }
    for name, fault in sorted(found.faults.items()):
        version = hashlib.sha256(f"{name} {fault}".encode()).hexdigest()[:32]
        yield _row(shard, name, f"~{version}", 0, version, fault_place(fault))


def _row(shard: Listed, name: str, order: str, size: int, version: str, place: Place) -> dict[str, object]:
    # so that the last `#` of a URI always ends the name of the tar
    path = re.sub("%(?=23|25)", "%25", name).replace("#", "%23")
    address = f"{shard.uri}#{path}" if name else shard.uri
    return {
        "item": item_id(address),
        "uri": address,
        "key": f"{shard.key}#{order}",
        "size": size,
        "source_version": version,
        "place": str(place),
    }
