"""Text -> one vector per piece: any transformers text encoder, sentence-transformers layout respected.

Source: Reimers and Gurevych 2019 (Sentence-BERT), arXiv:1908.10084.
B rows, L tokens, D encoder dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from batchproj.encode import Description, EncoderConfig, Features
from batchproj.errors import SpaceError
from batchproj.fixed_shapes import FixedShapes
from batchproj.media import Segment, Spec, TextSpec
from batchproj.model_folder import complete_config, read_config, read_json, read_json_list
from batchproj.schema import Modality
from batchproj.tokens import TextTokenizer, Tokens, load_tokenizer, padded, padded_length
from batchproj.weights import LocalModel

if TYPE_CHECKING:
    import torch

Pooling = Literal["mean", "cls", "last"]

_OLD_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_NEW_NAMES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_POSITION_OFFSET = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"})
"""Model types that number positions from pad_token_id + 1, so take that many tokens fewer."""


@dataclass(frozen=True)
class _Layout:
    """How token states become one vector, and how many tokens fit."""

    pooling: Pooling
    normalize: bool
    max_tokens: int


class Config(EncoderConfig):
    """A text encoder; None means: as the model's sentence-transformers files say.

    A folder without those files is pooled by `mean`, not normalised.
    """

    modalities: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_tokens: int | None = None

    def describe(self, model: LocalModel, modality: Modality) -> Description:
        """D and all that decides a text's feature, from the folder's JSON files."""
        tokens = self.describe_tokens(model, modality)
        layout = self._layout(model.path)
        return Description(tokens.dim, {**tokens.decides, "pooling": layout.pooling, "normalize": layout.normalize})

    def describe_tokens(self, model: LocalModel, modality: Modality) -> Description:
        """Of the last layer's states, the special tokens' among them."""
        self.require(modality)
        layout = self._layout(model.path)
        decides = {
            "kind": self.kind,
            "weights": model.digest,
            "max_tokens": layout.max_tokens,
            "dtype": self.dtype,
        }
        return Description(_hidden_size(model.path), decides, mean_pooled=layout.pooling == "mean")

    def build(self, model: LocalModel, modality: Modality, threads: int) -> TextEncoder:
        """Load model and tokenizer; SpaceError if the folder has no fast tokenizer."""
        from transformers import AutoModel

        from batchproj import torch_runtime

        self.require(modality)
        torch_runtime.use_threads(threads)
        layout = self._layout(model.path)
        loaded = torch_runtime.load_pretrained(AutoModel, model.path, self.dtype, unused=["pooler."])
        return TextEncoder(loaded, load_tokenizer(model.path, layout.max_tokens), layout)

    def _layout(self, folder: Path) -> _Layout:
        _refuse_unsuitable(folder)
        pooling, normalize = _sentence_modules(folder)
        limit = _token_limit(folder)
        if self.max_tokens is not None:
            if limit is not None and not 8 <= self.max_tokens <= limit:
                raise SpaceError(f"max_tokens is {self.max_tokens}, this model takes 8 to {limit}")
            limit = self.max_tokens
        if limit is None:
            raise SpaceError(f"the model in {folder} states no token limit: set max_tokens")
        return _Layout(
            pooling if self.pooling is None else self.pooling,
            normalize if self.normalize is None else self.normalize,
            limit,
        )


class TextEncoder:
    """A loaded text model; `spec.spans` cuts long texts to its token limit."""

    def __init__(self, model: Any, tokenizer: TextTokenizer, layout: _Layout) -> None:
        from batchproj.torch_runtime import forward_tokens, small_batches

        self._model, self._tokenizer, self._layout = model, tokenizer, layout
        small = small_batches(model.dtype)
        self._pooled: FixedShapes[Tokens] = FixedShapes(self._forward_pooled, small)
        self._states: FixedShapes[Tokens] = FixedShapes(self._forward_tokens, small)
        self._dim = int(model.config.hidden_size)
        self._full_tokens = forward_tokens(self._dim)
        self.spec: Spec = TextSpec(spans=tokenizer.spans)

    def encode(self, segments: Sequence[Segment]) -> Features:
        """Texts -> (B, D) float32; a text beyond the token limit is cut at it."""
        if not segments:
            return np.empty((0, self._dim), np.float32)
        return np.stack(self._run(self._pooled, segments))

    def encode_tokens(self, segments: Sequence[Segment]) -> list[Features]:
        """Texts -> the states of their tokens, (T, D) float32 each; cut as in `encode`."""
        return self._run(self._states, segments)

    def _run(self, batches: FixedShapes[Tokens], segments: Sequence[Segment]) -> list[Features]:
        rows = self._tokenizer.ids([str(segment.data) for segment in segments])
        return batches.run(rows, self._shape, self._batch_rows)

    def _batch_rows(self, row: Tokens) -> int:
        return max(1, self._full_tokens // self._shape(row)[0])

    def _shape(self, row: Tokens) -> tuple[int, bool]:
        """Padded length, and whether the row fills it: transformers drops an all-true mask and
        then takes another attention kernel, so full rows may not share a batch with padded ones.
        """
        length = min(padded_length(len(row)), self._layout.max_tokens)
        return length, len(row) == length

    def _forward_pooled(self, rows: Sequence[Tokens]) -> Features:
        import torch

        from batchproj.torch_runtime import device, to_numpy

        with torch.inference_mode():
            lengths_B = torch.tensor([len(row) for row in rows], device=device())
            pooled_BD = pool(self._forward(rows), lengths_B, self._layout.pooling)
            if self._layout.normalize:
                pooled_BD = torch.nn.functional.normalize(pooled_BD)
            return to_numpy(pooled_BD)

    def _forward_tokens(self, rows: Sequence[Tokens]) -> list[Features]:
        import torch

        from batchproj.torch_runtime import to_numpy

        with torch.inference_mode():
            states_BLD = to_numpy(self._forward(rows))
        return [states_LD[: len(row)] for states_LD, row in zip(states_BLD, rows, strict=True)]

    def _forward(self, rows: Sequence[Tokens]) -> torch.Tensor:
        """States (B, L, D) of the last layer."""
        import torch

        from batchproj.torch_runtime import device

        ids_BL, mask_BL = padded(rows, self._shape(rows[0])[0], self._tokenizer.pad)
        states_BLD: torch.Tensor = self._model(
            input_ids=torch.from_numpy(ids_BL).to(device()),
            attention_mask=torch.from_numpy(mask_BL).to(device()),
        ).last_hidden_state
        return states_BLD


def pool(states_BLD: torch.Tensor, lengths_B: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Token states -> (B, D) float32; the first `lengths_B` tokens of a row are real."""
    import torch

    if pooling == "cls":
        return states_BLD[:, 0].float()
    if pooling == "last":
        return states_BLD[torch.arange(len(lengths_B), device=lengths_B.device), lengths_B - 1].float()
    real_BL = torch.arange(states_BLD.shape[1], device=lengths_B.device) < lengths_B[:, None]
    return (states_BLD.float() * real_BL[:, :, None]).sum(1) / lengths_B[:, None]


def _refuse_unsuitable(folder: Path) -> None:
    """Dual towers have a kind of their own; encoder-decoders would need half a model."""
    config = read_config(folder)
    name = config.get("model_type")
    if "text_config" in config or "vision_config" in config:
        raise SpaceError(f"'{name}' in {folder} is a dual tower: use kind: clip")
    if config.get("is_encoder_decoder") or name in ("t5", "mt5", "bart"):
        raise SpaceError(f"'{name}' in {folder} is an encoder-decoder: kind text takes encoders alone")
    if not name:
        raise SpaceError(f"config.json in {folder} names no model_type: a transformers text model was expected")


def _sentence_modules(folder: Path) -> tuple[Pooling, bool]:
    """Pooling and normalisation of a sentence-transformers folder; SpaceError for other modules."""
    modules = read_json_list(folder / "modules.json")
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if not modules:
        return "mean", False
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise SpaceError(f"{folder} is made of {', '.join(kinds)}: Transformer, Pooling, Normalize were expected")
    if read_json(folder / "config_sentence_transformers.json").get("default_prompt_name"):
        raise SpaceError(f"{folder} puts a prompt before each text: not supported, take a model without")
    return _pooling(folder / modules[1]["path"] / "config.json"), len(modules) == 3


def _pooling(path: Path) -> Pooling:
    found = read_json(path)
    named = found.get("pooling_mode", [])
    names = [named] if isinstance(named, str) else list(named)
    chosen = [_NEW_NAMES.get(name) for name in names]
    chosen += [_OLD_FLAGS.get(key) for key, on in found.items() if key.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] is None:
        raise SpaceError(f"pooling in {path} is not one of mean, cls, lasttoken: set pooling")
    return chosen[0]


def _token_limit(folder: Path) -> int | None:
    """The smallest limit stated; None if none is."""
    config = read_config(folder)
    stated = [
        read_json(folder / "sentence_bert_config.json").get("max_seq_length"),
        read_json(folder / "tokenizer_config.json").get("model_max_length"),
        config.get("max_position_embeddings"),
    ]
    if stated[2] is not None and config["model_type"] in _POSITION_OFFSET:
        stated[2] -= config.get("pad_token_id", 1) + 1
    # a tokenizer without a limit says 1e30
    sensible = [int(limit) for limit in stated if limit is not None and limit < 1_000_000]
    return min(sensible, default=None)


def _hidden_size(folder: Path) -> int:
    config = read_config(folder)
    for name in ("hidden_size", "d_model", "dim"):
        if name in config:
            return int(config[name])
    return int(complete_config(folder).hidden_size)
