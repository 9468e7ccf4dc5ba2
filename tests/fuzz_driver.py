"""Lists and reads damaged tables, shards, recipes, spaces and what a collection keeps: what the driver itself does.

    python fuzz_driver.py FIRST LAST     a line of JSON, [number, outcome], before and after each case

In a process of its own, so that what ends it ends no test, and the last line names the case. Each may take some
seconds, and all of them some memory more than an idle process.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_seeds import documents, tables
from mutations import mutated

from batchproj import encode, segments
from batchproj.collection import layout
from batchproj.collection.ledger import read_entry
from batchproj.collection.snapshot import read_snapshot
from batchproj.errors import BatchprojError, ItemFault
from batchproj.objectstore import Folder
from batchproj.recipe import load_recipe
from batchproj.schema import Reason, listing_schema
from batchproj.source.listing import Seal, list_items
from batchproj.source.parser import Parser
from batchproj.source.place import FAULT, parse_place
from batchproj.source.reading import read_items
from batchproj.space import open_space

CASE_S = 60
MORE_BYTES = 1 << 30
ITEM_BYTES = 1 << 20
LANCE = "table.lance"
_PARSER = Parser(MORE_BYTES)
"""One for all cases: to start it takes far longer than a case."""


def case(number: int) -> tuple[str, dict[str, bytes]]:
    """What is to be opened, and the files of its folder, one of them damaged.

    Few are Lance's, which take a second each; nor are they the same on every run, for names in them are random.
    """
    rng = np.random.default_rng([7, number])
    sources = {**tables(), **{name: {name: data} for name, data in documents().items()}}
    names = [name for name in sources if name != LANCE]
    other = sources[names[rng.integers(len(names))]]
    name = LANCE if number % 97 == 0 else names[number % len(names)]
    files = dict(sources[name])
    damaged = list(files)[rng.integers(len(files))] if len(files) > 2 else name
    files[damaged] = mutated(files[damaged], list(other.values())[-1], rng)
    return name, files


def outcome(folder: Path, name: str, files: dict[str, bytes]) -> str:
    """What came of it, in words that are the same wherever the folder is; a defect begins with an exclamation mark."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    try:
        return _OPENERS.get(name, _listed)(folder / name)
    except BatchprojError as error:
        said = str(error).replace(str(folder), "")
        is_line = len(said) < 1_000 and not set(said) & set("\n\r")
        return f"{'' if is_line else '! no line: '}{type(error).__name__}: {said}"
    except BaseException as error:  # panics of Rust are no Exception
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"! {type(error).__name__} in {place.filename}, line {place.lineno}: {error}"[:2_000]


def _listed(source: Path) -> str:
    found = list_items(str(source), "file:///nowhere", parser=_PARSER)
    pages = [page for page in found if not isinstance(page, Seal)]
    assert all(page.schema == listing_schema() for page in pages)
    rows = [row for page in pages for row in page.to_pylist()]
    bad = [row for row in rows if row["place"] and parse_place(row["place"]).kind == FAULT]
    read_all = read_items(rows, ITEM_BYTES, 2)
    faults = [read for read in read_all if isinstance(read, ItemFault)]
    assert all(isinstance(fault.reason, Reason) for fault in faults)
    assert all(isinstance(read, bytes | ItemFault) for read in read_all)
    return f"{len(rows)} rows, {len(bad)} bad, {len(faults)} not read"


def _space(file: Path) -> str:
    space = open_space(str(file)).space
    for modality, member in space.members().items():
        encode.parse_config(member.encoder, f"{modality}")
        segments.parse(modality, member.segments, None, None, f"{modality}")
    return "a space"


def _recipe(file: Path) -> str:
    load_recipe(str(file))
    return "a recipe"


def _kept(read: Callable[[Folder, str], Any], name: Callable[[str], str]) -> Callable[[Path], str]:
    def opened(file: Path) -> str:
        folder = Folder(str(file.parent))
        folder.write(name("1"), file.read_bytes())
        return f"a {type(read(folder, '1')).__name__}"

    return opened


_OPENERS: dict[str, Callable[[Path], str]] = {
    "recipe.yaml": _recipe,
    "space.yaml": _space,
    "json.space.yaml": _space,
    "snapshot.json": _kept(read_snapshot, layout.snapshot),
    "ledger.json": _kept(read_entry, layout.ledger),
}


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024


def main(first: int, last: int) -> None:
    whole = [(name, {**files}) for name, files in tables().items()]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "case"
        for name, files in whole:  # all libraries are loaded, and their threads have begun
            outcome(folder, name, files)
            shutil.rmtree(folder)
        idle = _memory("VmRSS")
        allowed = _memory("VmSize") + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
        for number in range(first, last):
            print(json.dumps([number, None]), flush=True)
            name, files = case(number)
            signal.setitimer(signal.ITIMER_REAL, CASE_S)
            said = outcome(folder, name, files)
            signal.setitimer(signal.ITIMER_REAL, 0)
            shutil.rmtree(folder)
            print(json.dumps([number, said]), flush=True)
        print(json.dumps([None, str(_memory("VmHWM") - idle)]), flush=True)
    os._exit(0)  # threads of native code abort a process now and then as it takes itself apart


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
