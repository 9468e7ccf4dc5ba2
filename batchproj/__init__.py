"""batchproj: one searchable vector space from object storage full of images, sound and text.

Data flows top to bottom:

    errors, schema, segments, media, config    what everything else speaks
    retry, objectstore, lance_store, weights    bytes from anywhere, patiently; models from anywhere
    source -> decode -> encode -> project  the stages; none imports another
    descriptions                           what is known of an encoder without its weights, remembered
    space, recipe                          which encoders and projectors; how to use the machine
    collection                             plan, units, snapshots, lease: what was done and what is left
    embedding                              one unit on one worker, without Ray
    tags, index                            which version of the Lance table readers see; its rows
    conditions, queries, asking, hybrid, hits    which rows may be found, by what, in which order
    items, thumbnails, notebook            the bytes behind a row, a small picture of them, hits in a notebook
    stages, desk, news, stall              what workers do with a unit, how they get on, and when they do not
    pools, pipeline, small_run             all units through Ray Data; a few by the command itself
    changes, switch                        what a source holds now; the one step that readers see
    objective, fit, comparison, report, card    projectors trained in memory, judged, and what is said of them
    disk_links, training_set, streamed_fit, ray_training, many_pairs    the same for more pairs than memory holds
    texts, agreement, bridge_report, bridge    texts in two encoders, an adapter between them, what it is worth
    run, execution, run_checks             one run: what it is told, its units done, what must hold before it shows
    gate, breaker                          whether a space may take the place of the live one; when a run is paused
    embed, search, train, adapter, evaluate    what people do
    shipping, jobs, job_start, nodes, metrics, hooks    the same as jobs of a cluster, watched, and told of when it ends
    inventory, doctor                      what can be used; whether this machine is ready
    demo, bench, serve, cli                how they do it, how fast it is, and over HTTP
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchproj.search import Collection

# read when transformers is imported: with the package `kernels` it would fetch compiled code for some models
os.environ.setdefault("USE_HUB_KERNELS", "NO")

__version__ = "0.1.0"
__all__ = ["__version__", "open"]


def open(uri: str | os.PathLike[str], run: str | None = None) -> Collection:
    """Open a collection for reading, by path or URL: its live run, or another one that is kept.

    Raises CollectionError if there is none.
    """
    from batchproj.errors import UsageError
    from batchproj.search import Collection

    if not isinstance(uri, str | os.PathLike):
        raise UsageError(f"the collection is {str(uri)[:60]}; expected its path or URL")
    return Collection(os.fspath(uri), run=run)
