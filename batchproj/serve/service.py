"""All that answers are made with: models, the live run, what was drawn, and who is at work."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from batchproj.bounded_cache import BoundedCache
from batchproj.retry import configure
from batchproj.schema import Modality
from batchproj.serve.admission import Admission
from batchproj.serve.encoding import BatchingEncoder
from batchproj.serve.files import KEPT
from batchproj.serve.live import Live, View
from batchproj.serve.metrics import Metrics
from batchproj.serve.settings import Settings
from batchproj.thumbnails import MOST_BYTES, Thumbnails

THUMBNAIL_BYTES = 64 * 2**20
"""Of thumbnails that are kept."""

STORE_RETRY_S = 10.0
"""Somebody waits for the answer: a store that is away is not waited for as a run does."""


class Service:
    """One collection, opened for many requests."""

    def __init__(self, uri: str, settings: Settings = Settings()) -> None:
        """Loads the models; raises CollectionError if no run has been finished there."""
        configure(STORE_RETRY_S)
        self.settings = settings
        self.metrics = Metrics()
        self._encoder = BatchingEncoder(settings.model_threads, settings.limits, settings.batch_s, self.metrics)
        self.live = Live(uri, self._encoder, settings.poll_s, self.metrics.switches.inc)
        self.queries = Admission(settings.queries, settings.query_threads, settings.query_s)
        self.reads = Admission(settings.reads, settings.read_threads, settings.query_s)
        self.metrics.run.set_function(lambda: int(self.live.view.run))
        self.metrics.watch("query", lambda: self.queries.admitted)
        self.metrics.watch("read", lambda: self.reads.admitted)
        self._thumbnails = Thumbnails()
        self._drawn: BoundedCache[tuple[bytes, str]] = BoundedCache(THUMBNAIL_BYTES)

    def close(self) -> None:
        self.live.close()
        self._encoder.close()

    def thumbnail(self, view: View, row: dict[str, Any], known: str | None) -> Response:
        """A row's small picture; raises ItemFault if there is none."""
        item = view.items.find(row["item"], row["uri"])
        key = (row["content_id"], row["modality"], row["start"], row["end"], item.is_sound_track)
        tag = f'"{"-".join(map(str, key))}"'
        headers = {"ETag": tag, "Cache-Control": KEPT}
        if known is not None and tag in known:
            return Response(status_code=304, headers=headers)
        if (drawn := self._drawn.get(key)) is None:
            modality = Modality(row["modality"])
            data = b"" if modality is Modality.TEXT else item.whole(MOST_BYTES)
            drawn = self._thumbnails.draw(data, modality, row["start"], row["end"], item.is_sound_track)
            self._drawn.put(key, drawn, len(drawn[0]))
        return Response(drawn[0], media_type=drawn[1], headers=headers)
