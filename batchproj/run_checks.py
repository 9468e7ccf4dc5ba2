"""What must hold of the receipts before anything of a run is made visible."""

from __future__ import annotations

from collections import Counter

from batchproj.collection import commit, layout
from batchproj.collection.ledger import Report
from batchproj.collection.plan import Counts
from batchproj.collection.unit import DONE, Receipt
from batchproj.errors import BatchprojError, TryLater, UsageError
from batchproj.objectstore import GONE, Folder
from batchproj.run import Options, Run
from batchproj.schema import Reason
from batchproj.source.reading import DISK_FAILS

MASS_FORBIDDEN = 0.2
"""Share of all listed objects, newly forbidden, from which on we take it for a fault of the credentials."""

MASS_GONE = 0.2
"""The same of objects that were listed and are gone when they are read: more likely a mount that went away."""

_SOUND_BUT_UNREADABLE = """
SELECT count(*) FROM final f JOIN manifest m USING (item)
WHERE f.reason IN ('changed', 'forbidden') AND m.status = 'embedded'
    AND m.part NOT IN (SELECT file FROM damaged WHERE kind = 'parquet')
"""


def drop_records(folder: Folder, receipts: list[Receipt]) -> None:
    """Let the next attempt try again what was not embedded."""
    units = [receipt.unit for receipt in receipts if receipt.quarantined]
    folder.remove([layout.unit_file(unit.run, unit.name, DONE) for unit in units])


def check_readable(run: Run, receipts: list[Receipt], options: Options) -> None:
    """Many objects that are forbidden or gone are the fault of the credentials or of a mount, not the objects', and a
    repair must not take away what is sound: stop before anything shows."""
    forbidden, failing, gone, read = run.plan.rows(
        f"SELECT count(*) FILTER (reason = 'forbidden'), count(*) FILTER (starts_with(detail, '{DISK_FAILS}')), "
        f"count(*) FILTER (reason = 'changed' AND ends_with(detail, '{GONE}')), count(*) "
        "FROM final JOIN plan USING (item) WHERE action IN ('new', 'changed', 'encode')"
    )[0]
    if lost := run.plan.rows(_SOUND_BUT_UNREADABLE)[0][0] if options.is_repair else 0:
        drop_records(run.job.folder, receipts)
        raise UsageError(
            f"{lost:,} objects whose features are damaged cannot be read any more as they were embedded, and their "
            f"vectors are sound; nothing was made visible; first run: batchproj embed {run.target.source} "
            f"{run.job.folder.uri}"
        )
    if forbidden > MASS_FORBIDDEN * run.counts.listed:
        drop_records(run.job.folder, receipts)
        if failing > forbidden / 2:
            raise TryLater(
                f"{failing:,} of {read:,} objects could not be read from their disk; nothing was made visible; "
                "check it and run the same command again"
            )
        raise unreadable(Reason.FORBIDDEN, f"{forbidden:,} of {read:,}")
    may_go = options.allow_mass_delete or options.is_repair  # what a repair reads had been lost before
    if gone > MASS_GONE * run.counts.listed and not may_go:
        drop_records(run.job.folder, receipts)
        raise unreadable(Reason.CHANGED, f"{gone:,} of {read:,}")


def unreadable(reason: Reason, how_many: str, unless: str = "") -> BatchprojError:
    if reason is Reason.FORBIDDEN:
        return UsageError(
            f"{how_many} objects may be listed but not read; nothing was made visible; "
            f"check the rights of these credentials{unless}"
        )
    return TryLater(
        f"{how_many} objects were listed and are gone: is the source's mount away? nothing was made "
        "visible; run the same command again, if that is meant with --allow-mass-delete"
    )


def check_encoders(run: Run, receipts: list[Receipt]) -> None:
    """An encoder that makes nothing of anything blames no items: stop before anything shows."""
    for modality, count in commit.senseless_encoders(run.plan).items():
        drop_records(run.job.folder, receipts)
        raise UsageError(
            f"the vectors of all {count:,} {modality} items are not finite; nothing was made visible; check the "
            "encoder's weights, try dtype: fp32 in the space file, and run it again"
        )


def account(counts: Counts, receipts: list[Receipt], run: str) -> Report:
    """Add up the receipts, and check that every listed item is accounted for."""
    projected = sum(receipt.embedded for receipt in receipts if receipt.unit.task == "project")
    encoded: Counter[str] = Counter()
    done: Counter[str] = Counter()
    busy_s: dict[str, float] = {}
    for receipt in receipts:
        if receipt.unit.modality is not None and receipt.unit.task == "embed":
            encoded[receipt.unit.modality] += receipt.encoded
            done[receipt.unit.modality] += receipt.embedded
            busy_s[receipt.unit.modality] = busy_s.get(receipt.unit.modality, 0.0) + receipt.busy_s
    report = Report(
        run=run,
        items=counts.listed,
        embedded=sum(receipt.embedded for receipt in receipts) - projected,
        reprojected=projected,
        copied=sum(receipt.copied for receipt in receipts),
        unchanged=counts.unchanged,
        deleted=counts.deleted,
        quarantined=counts.quarantined + sum(receipt.quarantined for receipt in receipts),
        encode_calls=dict(encoded),
        items_per_s={m: round(done[m] / busy_s[m], 2) for m in done if busy_s[m]},
    )
    accounted = report.embedded + report.reprojected + report.copied + report.unchanged + report.quarantined
    if accounted != report.items:
        raise BatchprojError(f"{report.items} items listed, {accounted} accounted for; nothing was made visible, rerun")
    return report
