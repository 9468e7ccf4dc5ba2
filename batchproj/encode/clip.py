"""Dual towers, CLIP and SigLIP: image, video or text -> the space both towers already share.

Sources: Radford et al. 2021 (CLIP), arXiv:2103.00020; Zhai et al. 2023 (SigLIP), arXiv:2303.15343;
Tschannen et al. 2025 (SigLIP 2), arXiv:2502.14786.
B rows, L tokens, D width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from batchproj.encode import Description, Encoder, EncoderConfig, Features
from batchproj.errors import SpaceError
from batchproj.frame_encoder import FrameEncoder
from batchproj.media import Segment, Spec, Tokens
from batchproj.model_folder import complete_config, image_input, other_kind, read_config, read_json
from batchproj.schema import Modality
from batchproj.tokens import TextTokenizer, load_tokenizer, padded, require_tokenizer
from batchproj.weights import LocalModel

if TYPE_CHECKING:
    import torch

    from batchproj.accelerator import Coming, Replayed
    from batchproj.torch_runtime import Batches

_TOWERS = {
    ("clip", Modality.IMAGE): ("CLIPVisionModelWithProjection", "image_embeds"),
    ("clip", Modality.TEXT): ("CLIPTextModelWithProjection", "text_embeds"),
    ("siglip", Modality.IMAGE): ("SiglipVisionModel", "pooler_output"),
    ("siglip", Modality.TEXT): ("SiglipTextModel", "pooler_output"),
}
"""Class of one tower alone, and where its output is the projected embedding."""

_CLASS_TOKENS = {"clip": 1, "siglip": 0}
"""Tokens before an image's patches."""


class Config(EncoderConfig):
    """One tower; the other one's weights are not loaded. Features are not normalised, but those of a video's frames:
    a video's feature is the mean of their directions, as in CLIP4Clip (see `FrameEncoder`).
    """

    modalities: ClassVar[frozenset[Modality]] = frozenset({Modality.IMAGE, Modality.TEXT, Modality.VIDEO})

    def describe(self, model: LocalModel, modality: Modality) -> Description:
        """D and all that decides a feature of `modality`, from the folder's JSON files."""
        tower = self.describe_tokens(model, modality)
        return Description(_shared_dim(model.path, _family(model.path)), tower.decides, longest=tower.longest)

    def describe_tokens(self, model: LocalModel, modality: Modality) -> Description:
        """Of the tower's last states, before they are pooled and projected: patches, or the text's tokens.

        Of a video: of its frames' features, pooled and projected.
        """
        self.require(modality)
        family = _family(model.path)
        decides: dict[str, Any] = {
            "kind": self.kind,
            "weights": model.digest,
            "tower": _tower_of(modality).value,
            "dtype": self.dtype,
        }
        if modality is Modality.TEXT:
            require_tokenizer(model.path)
            decides["max_tokens"] = _max_tokens(model.path)
            # only if so: collections made before there was a SigLIP 2 stay valid
            if _lowercases(model.path):
                decides["lowercase"] = True
        else:
            decides["preprocess"] = image_input(model.path).decides()
        if modality is Modality.VIDEO:
            decides["frames"] = "mean of unit features"
            return Description(_shared_dim(model.path, family), decides, mean_pooled=True)
        width = int(_tower_config(model.path, modality).hidden_size)
        return Description(width, decides, longest=decides.get("max_tokens"))

    def build(self, model: LocalModel, modality: Modality, threads: int) -> Encoder:
        """Load one tower."""
        import transformers

        from batchproj import torch_runtime
        from batchproj.prepacked_linear import prepack

        self.require(modality)
        torch_runtime.use_threads(threads)
        family = _family(model.path)
        name, output = _TOWERS[family, _tower_of(modality)]
        tower = torch_runtime.load_pretrained(
            getattr(transformers, name), model.path, self.dtype, config=_tower_config(model.path, modality)
        )
        prepack(tower)
        if modality is Modality.TEXT:
            tokenizer = load_tokenizer(model.path, _max_tokens(model.path), lowercase=_lowercases(model.path))
            return ClipTextEncoder(tower, output, tokenizer, always_full=family == "siglip")
        from batchproj.image_encoder import ImageEncoder

        prefix = _CLASS_TOKENS[family]
        images = ImageEncoder(
            lambda pixels: getattr(tower(pixel_values=pixels), output),
            lambda pixels: tower(pixel_values=pixels).last_hidden_state[:, prefix:],
            tower,
            image_input(model.path),
            tower.dtype,
        )
        return FrameEncoder(images, unit=True) if modality is Modality.VIDEO else images


class ClipTextEncoder:
    """The text tower of a dual encoder.

    CLIP attends to the left only, so padding changes nothing and each text gets its own length;
    SigLIP was trained on texts filled up to the limit, without a mask.
    """

    def __init__(self, tower: Any, output: str, tokenizer: TextTokenizer, *, always_full: bool) -> None:
        from batchproj.accelerator import Replayed
        from batchproj.torch_runtime import batches, forward_tokens

        self._tokenizer = tokenizer
        self._always_full = always_full
        self._full_tokens = forward_tokens(tower.config.hidden_size)
        pooled = Replayed(lambda ids_BL: getattr(tower(input_ids=ids_BL), output))
        self._last_states = Replayed(lambda ids_BL: tower(input_ids=ids_BL).last_hidden_state)
        self._pooled: Batches[Tokens] = batches(lambda rows: self._forward(rows, pooled), tower.dtype)
        self._states = batches(self._forward_tokens, tower.dtype)
        self.spec: Spec = tokenizer.spec

    def encode(self, segments: Sequence[Segment]) -> Features:
        """Texts -> (B, D) float32; a text beyond the token limit is cut at it."""
        if not segments:
            return self.encode([Segment("")])[:0]
        return np.stack(self._run(self._pooled, segments))

    def encode_tokens(self, segments: Sequence[Segment]) -> list[Features]:
        """Texts -> the states of their tokens, (T, D) float32 each; cut as in `encode`."""
        return self._run(self._states, segments)

    def _run(self, texts: Batches[Tokens], segments: Sequence[Segment]) -> list[Features]:
        rows = self._tokenizer.ids_of(segments)
        return texts.run(rows, self._length, lambda row: max(1, self._full_tokens // self._length(row)))

    def _length(self, row: Tokens) -> int:
        from batchproj.torch_runtime import row_length

        limit = self._tokenizer.max_tokens
        return limit if self._always_full else min(row_length(len(row)), limit)

    def _forward_tokens(self, rows: Sequence[Tokens]) -> list[Features]:
        from batchproj.torch_runtime import to_numpy

        states_BLD = to_numpy(self._run_tower(rows, self._last_states))
        return [states_LD[: len(row)] for states_LD, row in zip(states_BLD, rows, strict=True)]

    def _forward(self, rows: Sequence[Tokens], pooled: Replayed) -> Features | Coming:
        from batchproj.torch_runtime import to_host

        return to_host(self._run_tower(rows, pooled))

    def _run_tower(self, rows: Sequence[Tokens], tower: Replayed) -> torch.Tensor:
        import torch

        from batchproj.accelerator import to_device

        ids_BL, _ = padded(rows, self._length(rows[0]), self._tokenizer.pad)
        with torch.inference_mode():
            return tower(to_device(ids_BL))


def _tower_of(modality: Modality) -> Modality:
    return Modality.IMAGE if modality is Modality.VIDEO else modality


def _family(folder: Path) -> str:
    config = read_config(folder)
    name = str(config.get("model_type"))
    if name not in {family for family, _ in _TOWERS}:
        raise SpaceError(f"'{name}' in {folder} is not a dual tower kind clip knows: {_way(name)}")
    return name


def _way(name: str) -> str:
    if name == "siglip2":
        return "it takes images at any aspect ratio (NaFlex); take a SigLIP 2 of fixed resolution (model_type siglip)"
    return other_kind(name, "clip or siglip was expected")


def _lowercases(folder: Path) -> bool:
    """SigLIP 2 was trained on lower case, which the tokenizer saved with it, Gemma's, does not make by itself."""
    name = str(read_json(folder / "tokenizer_config.json").get("tokenizer_class"))
    return _family(folder) == "siglip" and name.startswith(("Gemma", "Siglip2"))


def _tower_config(folder: Path, modality: Modality) -> Any:
    """The tower's part of the config; CLIP keeps the true width of the projection above both towers."""
    whole = complete_config(folder)
    tower = whole.text_config if modality is Modality.TEXT else whole.vision_config
    if whole.model_type == "clip":
        tower.projection_dim = whole.projection_dim
    return tower


def _max_tokens(folder: Path) -> int:
    return int(complete_config(folder).text_config.max_position_embeddings)


def _shared_dim(folder: Path, family: str) -> int:
    config = complete_config(folder)
    if family == "clip":
        return int(config.projection_dim)
    image, text = int(config.vision_config.hidden_size), int(config.text_config.projection_size)
    if image != text:
        raise SpaceError(f"the towers in {folder} end in {image} and {text} dims: one shared width was expected")
    return image
