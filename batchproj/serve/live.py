"""The run that is searched: one view for each request, from its begin to its end, and another one after a switch.

It is the live run, unless the request names another that is kept.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

from fastapi import HTTPException

from batchproj.errors import CollectionError, ItemFault, OtherModels, UsageError
from batchproj.items import Items
from batchproj.objectstore import Folder
from batchproj.queries import QueryEncoder
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.serve.other_runs import OtherRuns
from batchproj.serve.overview import Overview
from batchproj.tags import Tags, live_version

T = TypeVar("T")

log = logging.getLogger("batchproj.serve")


class View:
    """One run of the collection: the version of its table, its models, its items. Nothing of it changes."""

    def __init__(self, uri: str, encoder: QueryEncoder, run: str | None = None) -> None:
        self.collection = Collection(uri, encoder=encoder, run=run)
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
        self._others: OtherRuns[View] = OtherRuns(lambda run: View(uri, encoder, run), self._forget_encoders)
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
        """Take up the run that is live now; whether it is another one, or another version of its table.

        Of other runs those are closed that are kept no longer.
        """
        with self._switching:
            folder = Folder(self._uri)
            if self._others.all() and self._others.keep(Tags(folder).runs(), lambda view: view.collection.version):
                self._forget_encoders()
            if live_version(folder) == self.view.key:
                return False
            fresh = self._opened()
            self.view = fresh
            self._on_switch()
            self._forget_encoders()
            return True

    def _forget_encoders(self) -> None:
        """Those that no view asks by."""
        views = [self.view, *self._others.all()]
        self._encoder.keep({made.vector for view in views for made in view.collection.snapshot.fingerprints.values()})

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_s):
            try:
                self.refresh()
                self.problem = None
            except Exception as error:  # whatever is wrong with the new run, the old one is still there to be searched
                if self.problem is None:
                    log.warning("cannot look for a new run: %s", error)
                self.problem = str(error)

    def _view(self, run: str | None) -> View:
        """Of the live run, or of the one that is named; raises RunMissing if it is not kept."""
        live = self.view
        if run is None or run == live.run:
            return live
        return self._others.view(run)

    def _in_place_of(self, view: View, run: str | None) -> View:
        """What is shown now instead of a view whose files went away; the same one if they did not."""
        if view in self._others.all():
            self._others.drop(view)
            fresh = self._view(run)
            self._forget_encoders()
            return view if fresh.key == view.key else fresh
        self.refresh()
        return self._view(run)

    def ask(self, work: Callable[[View], T], run: str | None = None) -> tuple[View, T]:
        """Work on one view, of the live run or of the one that is named. If its files went away meanwhile, once more on
        the view that took its place."""
        view = self._view(run)
        try:
            return view, work(view)
        except (ItemFault, HTTPException):
            raise
        except Exception as error:
            of_request = isinstance(error, UsageError) and not isinstance(error, CollectionError)
            if of_request or isinstance(error, OtherModels):  # the latter is of what is installed here
                raise
            if (fresh := self._in_place_of(view, run)) is view:
                raise
            return fresh, work(fresh)
