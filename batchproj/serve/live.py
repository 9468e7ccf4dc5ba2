"""The run that is shown: one view for each request, from its begin to its end, and another one after a switch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from fastapi import HTTPException

from batchproj.errors import CollectionError, ItemFault, UsageError
from batchproj.items import Items
from batchproj.objectstore import Folder
from batchproj.queries import QueryEncoder
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.serve.overview import Overview
from batchproj.tags import live_version

T = TypeVar("T")

log = logging.getLogger("batchproj.serve")


class View:
    """One run of the collection: the version of its table, its models, its items. Nothing of it changes."""

    def __init__(self, uri: str, encoder: QueryEncoder) -> None:
        self.collection = Collection(uri, encoder=encoder)
        self.run = self.collection.run
        self.key = (self.collection.version, self.run)
        self.overview = Overview(self.collection)

    @cached_property
    def items(self) -> Items:
        return Items(Folder(self.collection.uri), self.collection.snapshot)

    def warm(self) -> None:
        """Load what the first query would wait for; what cannot be loaded is said, and again to whoever asks for it."""
        for modality in self.collection.kinds:
            try:
                embedder = self.collection.embedder(modality)
                if modality is Modality.TEXT:
                    self.collection.search("warm", k=1)
                del embedder
            except UsageError as error:
                log.warning("run %s: no queries of %s: %s", self.run, modality, error)


class Live:
    """Holds the view of the live run, and looks now and then whether that is another one."""

    def __init__(self, uri: str, encoder: QueryEncoder, poll_s: float, on_switch: Callable[[], None]) -> None:
        """Raises CollectionError if no run has been finished there."""
        self._uri, self._encoder, self._poll_s, self._on_switch = uri, encoder, poll_s, on_switch
        self._stop = threading.Event()
        self._switching = threading.Lock()
        self.problem: str | None = None
        self.view = self._opened()
        self._thread = threading.Thread(target=self._watch, name="batchproj-live", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _opened(self) -> View:
        view = View(self._uri, self._encoder)
        view.warm()
        return view

    def refresh(self) -> bool:
        """Take up the run that is live now; whether it is another one, or another version of its table."""
        with self._switching:
            if live_version(Folder(self._uri)) == self.view.key:
                return False
            fresh = self._opened()
            self.view = fresh
            self._on_switch()
            self._encoder.keep(each.vector for each in fresh.collection.snapshot.fingerprints.values())
            return True

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                self.refresh()
                self.problem = None
            except Exception as error:  # whatever is wrong with the new run, the old one is still there to be searched
                if self.problem is None:
                    log.warning("cannot look for a new run: %s", error)
                self.problem = str(error)

    def ask(self, work: Callable[[View], T]) -> tuple[View, T]:
        """Work on one view. If its files went away meanwhile, once more on the view that took its place."""
        view = self.view
        try:
            return view, work(view)
        except (ItemFault, HTTPException):
            raise
        except Exception as error:
            if isinstance(error, UsageError) and not isinstance(error, CollectionError):
                raise  # of the request alone
            if not self.refresh() and self.view is view:
                raise
            view = self.view
            return view, work(view)
