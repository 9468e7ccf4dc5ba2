"""Every error of the package.

    BatchprojError            exit 1   something here is wrong: report it
    ├── UsageError            exit 2   bad usage or configuration; nothing was written
    │   ├── SourceError                the source cannot be listed
    │   ├── SpaceError                 a space, recipe or projector does not fit
    │   ├── WeightsError               a model cannot be found, or is not the pinned one
    │   ├── CollectionError            the collection is missing, or of another fingerprint
    │   │   └── RunMissing             a run of it is not there, or is kept no longer
    │   └── TooFewPairs                too few to train a projector of a modality on
    ├── TryLater              exit 75  locked, or storage is away: the same command may work later
    │   ├── DiskFault              a disk fails over one object, for as long as we are patient
    │   └── LeaseHeld              another run holds the collection, and does the work
    ├── TooManyBad            exit 3   paused: too many items have one reason; what is done is kept
    ├── DamagedFile           exit 1   a file of the collection is not what was written
    └── ItemFault             (none)   one item cannot be embedded: a quarantine row, never a stop

A message says what was wrong, what was expected and what to do, in one line.
"""

from __future__ import annotations

from batchproj.schema import Reason


class BatchprojError(Exception):
    """Base of all errors raised on purpose; its text is one line for the user."""

    exit_code = 1


class UsageError(BatchprojError):
    """Bad usage or configuration; nothing has been made visible, and before any work nothing written."""

    exit_code = 2


class SourceError(UsageError):
    """The source is missing, empty, forbidden or of a kind that is not supported."""


class SpaceError(UsageError):
    """A space, recipe or projector file is wrong, or its parts do not fit together."""


class WeightsError(UsageError):
    """A model is not where its reference says, is not the pinned one, or is unsafe to load."""


class CollectionError(UsageError):
    """The collection is missing, or was made with other models than the ones at hand."""


class OtherModels(CollectionError):
    """What is installed here is not what made the table: to open it again changes nothing."""


class RunMissing(CollectionError):
    """A run that was asked for by its name was never finished, or is kept no longer."""


class TooFewPairs(UsageError):
    """A modality has too few pairs to train a projector on."""


class TryLater(BatchprojError):
    """Locked by another run, or storage is away; exit code of BSD's EX_TEMPFAIL."""

    exit_code = 75


class DiskFault(TryLater):
    """A disk does not give one object, however often it is asked; whose fault that is, the objects beside it tell."""


class LeaseHeld(TryLater):
    """A living run holds the collection: what a schedule that overlaps itself meets, and no failure."""


class TooManyBad(BatchprojError):
    """A run was paused, as too many of its last items are in quarantine for one reason; nothing was made visible."""

    exit_code = 3


class DamagedFile(BatchprojError):
    """A file of the collection is not what was written."""


class ItemFault(BatchprojError):
    """The content of one item cannot be embedded.

    Raised by decode and encode; the pipeline turns it into one quarantine row.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[ItemFault], tuple[Reason, str]]:
        return ItemFault, (self.reason, self.detail)
