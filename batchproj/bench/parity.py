"""No time without the right vectors: every id there once, and each vector close to that of the fp32 reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from batchproj.schema import Modality

LEAST_COSINE = {Modality.TEXT: 0.999, Modality.IMAGE: 0.99, Modality.AUDIO: 0.999}
"""What bf16 leaves of texts; of images also what a JPEG's scaled decode does to edges. Sound is fp32 throughout."""


@dataclass(frozen=True)
class Parity:
    """`cosine` is the least over all ids, None where `problem` kept it from being computed."""

    cosine: float | None
    problem: str | None = None


def compare(features: Path, reference: Path, expected: set[str], modality: Modality) -> Parity:
    """Features of a contender against those of the reference, files as `contender` describes them."""
    ids, values = _read(features)
    if problem := _ids_problem(ids, expected):
        return Parity(None, problem)
    reference_ids, wanted = _read(reference)
    place = {name: number for number, name in enumerate(reference_ids)}
    wanted = wanted[[place[name] for name in ids]]
    if values.shape != wanted.shape:
        return Parity(None, f"features are {values.shape[1]} wide, {wanted.shape[1]} was expected")
    if not np.isfinite(values).all():
        return Parity(None, "NaN or infinity among the features")
    norms = np.linalg.norm(values, axis=1) * np.linalg.norm(wanted, axis=1)
    cosine = float(((values * wanted).sum(1) / np.maximum(norms, np.finfo(np.float32).tiny)).min())
    least = LEAST_COSINE[modality]
    return Parity(cosine, None if cosine >= least else f"least cosine to fp32 is {cosine:.4f}, {least} was expected")


def _read(file: Path) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(file)
    rows = table["feature"].combine_chunks()
    values = rows.flatten().to_numpy().reshape(len(rows), -1) if len(rows) else np.empty((0, 0), np.float32)
    return table["id"].to_pylist(), values


def _ids_problem(ids: list[str], expected: set[str]) -> str | None:
    found = set(ids)
    if lost := sorted(expected - found):
        return f"{len(lost):,} of {len(expected):,} ids have no feature, '{lost[0]}' first"
    if strange := sorted(found - expected):
        return f"{len(strange):,} ids were not asked for, '{strange[0]}' first"
    return f"{len(ids) - len(found):,} ids came twice" if len(ids) > len(found) else None
