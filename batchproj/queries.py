"""What is searched by, and its vector: texts and files through the encoders of the table, rows by their own vectors."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batchproj.conditions import Filter
from batchproj.decode.item import decode_pieces
from batchproj.decode.limits import Limits
from batchproj.decoding import Decoded, Decoding, Fetched, Lending
from batchproj.errors import ItemFault, UsageError
from batchproj.media import Segment, Spec
from batchproj.objectstore import Folder
from batchproj.schema import Modality
from batchproj.space import Embedder, Member

Vector = npt.NDArray[np.float32]

UNLIKE_WEIGHT = 0.5
"""What is subtracted for what a result must not be like, against 1 for what it must."""


@dataclass(frozen=True)
class Example:
    """One thing to search by: a text, the bytes of a file, or the id of a row or an item that is there.

    `modality` of a file is None where its content is to tell; `name` is what errors call it.
    """

    modality: Modality | None
    text: str | None = None
    data: bytes | None = None
    id: str | None = None
    name: str = "the query"
    weight: float = 1.0


@dataclass(frozen=True)
class Search:
    """One search. What is found is like the weighted sum of `examples`, and the less like a negative weight's.

    `k` hits from `offset` on; see `Collection.search` for the rest.
    """

    examples: tuple[Example, ...]
    k: int = 10
    offset: int = 0
    modality: str | None = None
    where: tuple[str, ...] = ()
    filters: tuple[Filter, ...] = ()
    group: bool = False
    balance: bool = False
    hybrid: bool = False
    space: str | None = None

    @property
    def words(self) -> str:
        """What a hybrid search looks for; without a text it is empty."""
        return " ".join(each.text for each in self.examples if each.text and each.weight > 0)


def file_example(path: str, modality: Modality, weight: float = 1.0) -> Example:
    """A file's bytes; raises UsageError if there is none."""
    parent, _, name = path.rpartition("/")
    try:
        data = Folder(parent or ("/" if path.startswith("/") else ".")).read(name)
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"no file at {path}; expected one with {modality} to search by") from None
    return Example(modality, data=data, name=path, weight=weight)


def combined(vectors: Sequence[Vector], weights: Sequence[float]) -> Vector:
    """The weighted sum of vectors (K,), of unit length; UsageError if nothing is left of it."""
    if len(vectors) == 1 and weights[0] > 0:
        return vectors[0]
    total: Vector = np.sum([weight * vector for vector, weight in zip(vectors, weights, strict=True)], axis=0)
    norm = float(np.linalg.norm(total))
    if not np.isfinite(norm) or norm < 1e-6:
        raise UsageError("what is searched by and what is subtracted cancel each other out; change the weights")
    return (total / norm).astype(np.float32)


class QueryEncoder:
    """Encoders of queries, each loaded once, and decoder processes that are lent to one query at a time."""

    def __init__(self, threads: int = 2, limits: Limits = Limits(), decoders: int = 2) -> None:
        """`threads` of a model; `decoders` is how many files of a kind are decoded at once."""
        self._threads, self._limits, self._decoders = threads, limits, decoders
        self._embedders: dict[str, Embedder] = {}
        self._loading = threading.Lock()
        self._lent: dict[tuple[str, Modality | None], Lending] = {}

    def embedder(self, member: Member) -> Embedder:
        """Encoder and projector as queries take them."""
        with self._loading:
            if (found := self._embedders.get(member.vector_fp)) is None:
                found = self._embedders[member.vector_fp] = member.load(self._threads, for_queries=True)
            return found

    def keep(self, fingerprints: Iterable[str]) -> None:
        """Forget encoders of other vectors than these."""
        with self._loading:
            for other in set(self._embedders) - set(fingerprints):
                del self._embedders[other]
                for key in [key for key in self._lent if key[0] == other]:
                    del self._lent[key]

    def vector(self, member: Member, example: Example) -> Vector:
        """The vector (K,) of a text or a file; several segments of a long one are averaged. Raises UsageError."""
        try:
            vectors = [self.vectors(member, segments) for segments in self._decoded(member, example)]
        except ItemFault as fault:
            raise UsageError(f"the query cannot be embedded: {fault}") from fault
        mean: Vector = np.concatenate(vectors).mean(axis=0)
        norm = np.linalg.norm(mean)
        if not np.isfinite(norm) or norm == 0:
            raise UsageError(f"{example.name} cannot be embedded: its vector is not finite; search by something else")
        return mean / norm

    def vectors(self, member: Member, segments: Sequence[Segment]) -> Vector:
        """Vectors (N, K) of decoded segments."""
        embedder = self.embedder(member)
        return embedder.project(embedder.encode(segments))

    def _decoded(self, member: Member, example: Example) -> Iterator[list[Segment]]:
        """Segments, piece by piece; a file is decoded as an item of a run is, for it may be anybody's."""
        spec = self.embedder(member).spec
        if example.text is not None:
            data = example.text.encode()
            yield from (piece.segments for piece in decode_pieces(data, Modality.TEXT, spec, self._limits))
            return
        with self._decoding(member.vector_fp, member.modality, spec) as decoding:
            for decoded in self._pieces(decoding, example):
                if (found := decoded.item.modality) is not member.modality:
                    instead = "type its words" if found is Modality.TEXT else f"search by it as {found}"
                    raise UsageError(f"{example.name} is {found}, not {member.modality}; {instead}")
                yield decoded.segments

    def modality_of(self, example: Example) -> Modality:
        """What a file is, by its content; raises UsageError if it cannot be told."""
        if example.modality is not None:
            return example.modality
        try:
            with self._decoding("", None, None) as decoding:
                found = next(self._pieces(decoding, example)).item.modality
        except ItemFault as fault:
            raise UsageError(f"{example.name} cannot be searched by: {fault}") from fault
        assert found is not None, "no fault, and yet no modality"
        return found

    @staticmethod
    def _pieces(decoding: Decoding, example: Example) -> Iterator[Decoded]:
        assert example.data is not None, "no file"
        source = Fetched("query", example.name, None, "", example.data, "query", example.name)
        for decoded in decoding.ahead([source], None):
            if decoded.fault is not None:
                raise decoded.fault
            yield decoded

    @contextmanager
    def _decoding(self, made_for: str, modality: Modality | None, spec: Spec | None) -> Iterator[Decoding]:
        with self._loading:
            lending = self._lent.setdefault((made_for, modality), Lending(self._decoders))
        with lending.one(modality, spec, self._limits) as decoding:
            yield decoding


def weight_of(weights: Mapping[str, float], name: str) -> float:
    """The weight of what is searched by under this name; 1, or for `not` UNLIKE_WEIGHT, unless another was given."""
    return weights.get(name, UNLIKE_WEIGHT if name == "not" else 1.0)
