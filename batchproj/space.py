"""A space: {modality: encoder + projector} that share one K-dimensional space, and its fingerprints.

Three stages: `Space` is the file; `resolve` finds the models and yields a `Member` per modality
(cheap, no weights loaded); `Member.load` on a worker yields an `Embedder`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, Field

from batchproj import descriptions, encode, project
from batchproj import segments as segmenting
from batchproj.config import read_yaml, validate
from batchproj.cutting import cut
from batchproj.errors import SpaceError
from batchproj.features import Features, gathered
from batchproj.importing import importing
from batchproj.media import Segment, Spec
from batchproj.model_folder import refuse_foreign_code
from batchproj.objectstore import Folder, canonical
from batchproj.schema import Cache, Modality
from batchproj.token_features import TokenFeatures
from batchproj.tokens import load_tokenizers
from batchproj.weights import LocalModel
from batchproj.weights import resolve as resolve_weights

if TYPE_CHECKING:
    from batchproj.projector import Projector

CACHE_DTYPE = np.float16
"""Features are rounded to this before they are projected, cached or not, so both give equal bits."""


class ProjectorFile(BaseModel):
    """A projector as a space names it; `weights` is relative to the space file.

    Without `weights` nobody has trained it yet: it has those of a fixed seed, so that a collection can be made to
    train it on. `untrained` says so where they were written to a file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str
    weights: str | None = None
    untrained: Literal[True] | None = None

    @property
    def file(self) -> str:
        """`weights`; a space that is written always names them."""
        assert self.weights is not None
        return self.weights


class About(BaseModel):
    """An encoder as its source tells of it, for those who have not fetched it yet; decides nothing.

    dims: of a feature; parameters_m: millions of them in the files, towers included that are not loaded;
    download_mb: what is fetched at first use, 0 from a wheel that is installed along.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    dims: int = Field(gt=0)
    parameters_m: int = Field(gt=0)
    download_mb: int = Field(ge=0)
    licence: str


class MemberFile(BaseModel):
    """One modality of a space file; `encoder` is checked by the encoder's own `Config`.

    cache: keep the encoder's tokens as features, for projectors that take them. A kind that takes
    pooled features gets mean and standard deviation of the tokens then, added in float32 from the
    float16 of the cache, or the mean alone if it was trained on as many dims as a token has; so one
    cache serves every kind.
    segments: how long items are cut, checked by the modality's model in `batchproj.segments`; without it
    texts and sounds as little as the encoder's limit allows, without overlap.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    encoder: dict[str, Any]
    cache: Cache = "pooled"
    segments: dict[str, Any] | None = None
    projector: ProjectorFile | None = None
    about: About | None = None


class Split(BaseModel):
    """How the pairs were divided when the projectors were trained; `evaluate` uses the test part."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    seed: int = 0
    test_fraction: float = Field(default=0.2, gt=0, lt=1)


class Adapts(BaseModel):
    """Both ends of a bridge, as vector fingerprints: its own text encoder with the adapter, and what they lead to."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    query: str
    vectors: str


class Space(BaseModel):
    """A space file; the README has an example. Without `name` it is called as its file, `space.yaml` as its folder.

    adapts: of a bridge that `train --adapter` made: its text encoder answers queries to a table of those vectors, and
    makes no table of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = "space"
    dim: int = Field(gt=0)
    about: str | None = None
    split: Split | None = None
    adapts: Adapts | None = None
    text: MemberFile | None = None
    image: MemberFile | None = None
    audio: MemberFile | None = None
    video: MemberFile | None = None

    def members(self) -> dict[Modality, MemberFile]:
        found = {modality: getattr(self, modality) for modality in Modality}
        return {modality: member for modality, member in found.items() if member is not None}

    def untrained(self) -> list[Modality]:
        """Modalities whose projector is still to be trained."""
        projectors = {modality: member.projector for modality, member in self.members().items()}
        return [modality for modality, file in projectors.items() if file and (file.weights is None or file.untrained)]


@dataclass(frozen=True)
class SpaceFolder:
    """A parsed space file and the folder its relative paths refer to."""

    space: Space
    folder: Folder


def shipped_spaces() -> list[str]:
    """Names of the spaces inside the package."""
    root = resources.files("batchproj") / "spaces"
    return sorted(entry.name for entry in root.iterdir() if (entry / "space.yaml").is_file())


def open_space(reference: str) -> SpaceFolder:
    """Read a space by shipped name, folder, or path or URL of its YAML file."""
    if reference in shipped_spaces():
        folder, name = Folder(str(resources.files("batchproj") / "spaces" / reference)), "space.yaml"
    elif canonical(reference).endswith((".yaml", ".yml")):
        parent, _, name = reference.rpartition("/")
        folder = Folder(parent or ("/" if reference.startswith("/") else "."))
    else:
        folder, name = Folder(reference), "space.yaml"
    try:
        data = folder.read(name)
    except (FileNotFoundError, NotADirectoryError):
        shipped = ", ".join(shipped_spaces())
        raise SpaceError(
            f"no space '{reference}': expected a shipped one ({shipped}), a folder with space.yaml, or a YAML file"
        ) from None
    where = f"space {reference}"
    space = validate(Space, read_yaml(data, where), where)
    if not space.members():
        raise SpaceError(f"{where}: no modality; add at least one of {', '.join(Modality)}")
    if "name" not in space.model_fields_set:
        stem = PurePosixPath(name).stem
        space = space.model_copy(update={"name": folder.uri.rpartition("/")[2] if stem == "space" else stem})
    return SpaceFolder(space, folder)


def fingerprint(document: dict[str, Any]) -> str:
    """sha256 of the canonical JSON of a document."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Member:
    """One modality of a resolved space: everything a worker needs, and nothing heavy."""

    modality: Modality
    config: encode.EncoderConfig
    model_digest: str
    dim: int
    cache: Cache
    feature_doc: dict[str, Any]
    vector_doc: dict[str, Any]
    projector: bytes | None
    segments: segmenting.Segments | None = None

    @property
    def feature_fp(self) -> str:
        return fingerprint(self.feature_doc)

    @property
    def vector_fp(self) -> str:
        return fingerprint(self.vector_doc)

    @property
    def tells_queries(self) -> bool:
        """Whether it makes another vector of a text as a query than as an item."""
        return len(set(self.feature_doc.get("prompts", {}).values())) > 1

    def load(self, threads: int, *, for_queries: bool = False) -> Embedder:
        """Load encoder and projector on this machine; the weights must be the ones planned with.

        It is for items, which captions are too, unless it is for what a user searches by: such a text is cut by
        nothing but the encoder's own limit. Of sound and video the settings stay, for they say what is not heard
        (silence) and how many frames are seen.
        """
        model = resolve_weights(self.config.model, self.config.revision, self.model_digest)
        build = self.config.build_for_queries if for_queries else self.config.build
        with importing():
            encoder = build(model, self.modality, threads)
        settings = None if for_queries and self.modality is Modality.TEXT else self.segments
        spec = encoder.spec if settings is None else cut(encoder.spec, settings)
        return Embedder(encoder, spec, self.load_projector(), self.dim, self.cache)

    def load_projector(self) -> Projector | None:
        return None if self.projector is None else project.loads(self.projector)

    def encoder_file(self) -> dict[str, Any]:
        """The encoder as a space file names it, its weights pinned."""
        return {**self.config.model_dump(exclude_none=True), "digest": self.model_digest}

    def with_projector(self, weights: bytes, dim: int) -> Member:
        """The same encoder, with a projector into `dim` dimensions."""
        return replace(self, projector=weights, vector_doc=_vector_doc(self.feature_doc, weights, dim))


@dataclass(frozen=True)
class ResolvedSpace:
    """A space whose models were found and whose parts fit together."""

    space: Space
    members: dict[Modality, Member]

    @property
    def dim(self) -> int:
        return self.space.dim

    @property
    def fingerprint(self) -> str:
        return fingerprint({m: member.vector_fp for m, member in self.members.items()})

    def refuse_if_bridge(self) -> None:
        """Raises SpaceError for a bridge: it makes vectors of queries, and none of a table's rows."""
        if self.space.adapts is not None:
            raise SpaceError(
                f"space '{self.space.name}' is a bridge for queries to text vectors with fingerprint "
                f"{self.space.adapts.vectors[:12]}, nothing is embedded with it: search with it (batchproj search "
                "COLLECTION WORDS --space BRIDGE), and embed with the new encoder's own space"
            )

    def save(self, folder: Folder) -> None:
        """Write `space.yaml` and the projectors so that the folder stands by itself."""
        document, untrained = self.space.model_dump(exclude_none=True), self.space.untrained()
        for modality, member in self.members.items():
            document[modality]["encoder"] = member.encoder_file()
            if member.segments is not None:
                document[modality]["segments"] = member.segments.model_dump()
            if member.projector is not None:
                document[modality]["projector"]["weights"] = f"{modality}.safetensors"
                if modality in untrained:
                    document[modality]["projector"]["untrained"] = True
                folder.write(f"{modality}.safetensors", member.projector)
        folder.write("space.yaml", yaml.safe_dump(document, sort_keys=False).encode())


def resolve(opened: SpaceFolder) -> ResolvedSpace:
    """Find the models and check dimensions; raises SpaceError or WeightsError."""
    with importing():
        return ResolvedSpace(opened.space, {each: resolve_member(opened, each) for each in opened.space.members()})


def resolve_member(opened: SpaceFolder, modality: Modality) -> Member:
    """One modality alone, which must be in the space: describing the others may take libraries and seconds, once."""
    member = opened.space.members()[modality]
    where = f"space {opened.space.name}, {modality}"
    config = encode.parse_config(_absolute_model(member.encoder, opened.folder), f"{where}.encoder")
    model: LocalModel = resolve_weights(config.model, config.revision, config.digest)
    described = _described(config, model, modality, member.cache, where)
    segments = segmenting.parse(modality, member.segments, described.longest, described.frames, where)
    if modality is Modality.TEXT:
        _check_room(described, model, segments, where)
    weights = _projector_bytes(modality, member, described, opened, where)
    _check_projector(described, weights, member, opened.space.dim, where)
    # what is left to the defaults is not in the documents: collections made before there was a choice stay valid
    cached = {"cache": "tokens"} if member.cache == "tokens" else {}
    pieces = {} if segments is None else {"segments": segmenting.decides(segments)}
    made = {"epoch": encode.FEATURE_EPOCH, "cache_dtype": np.dtype(CACHE_DTYPE).name}
    feature_doc = {**described.decides, **cached, **pieces, **made}
    vector_doc = _vector_doc(feature_doc, weights, opened.space.dim)
    return Member(
        modality, config, model.digest, described.dim, member.cache, feature_doc, vector_doc, weights, segments
    )


def _check_room(
    described: encode.Description, model: LocalModel, segments: segmenting.Segments | None, where: str
) -> None:
    """SpaceError if a prompt leaves a text no room, of either role in the model and the document's in `segments`.

    The tokenizer tells, which is loaded only where there is a prompt or `segments`.
    """
    decides = described.decides
    if segments is None and "prompts" not in decides:
        return
    prompts = decides.get("prompts", {"document": ""})
    try:
        found = load_tokenizers(model.path, decides["max_tokens"], prompts, lowercase=decides.get("lowercase", False))
        if segments is not None:
            cut(found["document"].spec, segments)
    except SpaceError as error:
        raise SpaceError(f"{where}: {error}") from error


def _vector_doc(feature_doc: dict[str, Any], weights: bytes | None, dim: int) -> dict[str, Any]:
    return {
        "feature": fingerprint(feature_doc),
        "projector": None if weights is None else hashlib.sha256(weights).hexdigest(),
        "dim": dim,
        "normalisation": "l2",
        "epoch": project.PROJECT_EPOCH,
    }


def _described(
    config: encode.EncoderConfig, model: LocalModel, modality: Modality, cache: Cache, where: str
) -> encode.Description:
    refuse_foreign_code(model.path)
    try:
        return descriptions.described(config, model, modality, cache)
    except SpaceError as error:
        if cache == "pooled":  # these say themselves which model is meant
            raise
        raise SpaceError(f"{where}: {error}") from error


def _absolute_model(encoder: dict[str, Any], folder: Folder) -> dict[str, Any]:
    """A model that is a folder beside the space file becomes an absolute path."""
    model = encoder.get("model")
    if isinstance(model, str) and folder.uri.startswith("file://") and not model.startswith(("/", "package:")):
        beside = Path(folder.uri.removeprefix("file://")) / model
        if beside.is_dir():
            return {**encoder, "model": str(beside.resolve())}
    return encoder


def _projector_bytes(
    modality: Modality, member: MemberFile, described: encode.Description, opened: SpaceFolder, where: str
) -> bytes | None:
    file, folder = member.projector, opened.folder
    if file is None:
        return None
    if file.weights is None:
        if modality is Modality.TEXT:
            raise SpaceError(f"{where}: text is what others are trained into, so its projector must name its weights")
        return _untrained(file.kind, described.dim, opened.space.dim, where)
    try:
        return folder.read(file.weights)
    except FileNotFoundError:
        raise SpaceError(
            f"{where}: no projector weights at {folder.uri}/{file.weights}; name another file, or leave out 'weights' "
            "to begin with untrained ones"
        ) from None


def _untrained(kind: str, in_dim: int, out_dim: int, where: str) -> bytes:
    import torch

    try:
        config = project.parse_config({"kind": kind, "in_dim": in_dim, "out_dim": out_dim})
    except SpaceError as error:
        raise SpaceError(f"{where}: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return config.build().to_bytes()


def _check_projector(
    described: encode.Description, weights: bytes | None, member: MemberFile, dim: int, where: str
) -> None:
    if weights is None or member.projector is None:
        _check_bare(described, member, dim, where)
        return
    projector = project.read_header(weights, where)
    if projector.kind != project.plain_kind(member.projector.kind):
        raise SpaceError(f"{where}: the projector is of kind {projector.kind}, the space says {member.projector.kind}")
    if projector.is_asked:
        raise SpaceError(
            f"{where}: another modality asks this {projector.kind} projector (query_dim), so an item alone has no "
            "vector by it; use it in Python, by 'cross'"
        )
    if projector.takes == "tokens" and member.cache == "pooled":
        raise SpaceError(f"{where}: a {projector.kind} projector takes tokens; add 'cache: tokens' beside 'encoder'")
    fitting = [described.dim]
    if member.cache == "tokens" and projector.takes == "pooled":
        fitting.append(2 * described.dim)  # mean and standard deviation
    if projector.in_dim not in fitting or projector.out_dim != dim:
        raise SpaceError(
            f"{where}: the projector maps {projector.in_dim} to {projector.out_dim} dimensions, "
            f"needed is {described.dim} to {dim}; train it on this encoder"
        )


def _check_bare(described: encode.Description, member: MemberFile, dim: int, where: str) -> None:
    if described.dim != dim:
        raise SpaceError(
            f"{where}: the encoder gives {described.dim} dimensions and the space has {dim}; set dim to what text "
            "has, and give others a projector, 'projector: {kind: linear}' for one that is still to be trained"
        )
    if member.cache == "tokens" and not described.mean_pooled:
        raise SpaceError(
            f"{where}: the mean of this encoder's tokens is not its vector; "
            "add a projector, or leave out 'cache: tokens'"
        )


class Embedder:
    """An encoder and its projector, loaded."""

    def __init__(
        self, encoder: encode.Encoder, spec: Spec, projector: Projector | None, dim: int, cache: Cache
    ) -> None:
        """`spec` is what the items are decoded for: the encoder's own, or cut finer."""
        self._encoder, self.spec, self._projector = encoder, spec, projector
        self._dim, self._cache = dim, cache

    def encode(self, segments: Sequence[Segment]) -> Features:
        """Features as they are cached; beyond float16's range they become infinite."""
        with np.errstate(over="ignore"):
            if self._cache == "pooled":
                return self._encoder.encode(segments).astype(CACHE_DTYPE)
            tokens = self._encoder.encode_tokens(segments) if segments else []
            return gathered([tokens_TD.astype(CACHE_DTYPE) for tokens_TD in tokens], self._dim, self._cache)

    def rehearse(self) -> None:
        """Do beforehand what an encoder's first batches would take longer for, if there is such a thing."""
        if isinstance(self._encoder, encode.Rehearsing):
            self._encoder.rehearse()

    def project(self, features: Features) -> npt.NDArray[np.float32]:
        """Vectors (N, K) float32 of unit norm."""
        return to_vectors(features, self._projector)


def to_vectors(features: Features | npt.NDArray[np.float32], projector: Projector | None) -> npt.NDArray[np.float32]:
    """Project cached features of N segments to unit vectors (N, K); without a projector only normalise."""
    if projector is not None:
        return projector.project(features)
    wide: npt.NDArray[np.float32] = (
        features.mean() if isinstance(features, TokenFeatures) else features.astype(np.float32)
    )
    norms: npt.NDArray[np.float32] = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = np.divide(wide, norms, out=np.full_like(wide, np.nan), where=norms > 0)
    return unit
