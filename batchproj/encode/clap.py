"""CLAP's towers: sound or text -> the space both already share, at unit length.

Source: Wu et al. 2023 (LAION CLAP), arXiv:2211.06687.
B rows, L tokens, F mel frames, M mels, T places of the sound tower's last map, D shared width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from batchproj.clap_mel import ClapInput, ClapMel, clap_input
from batchproj.encode import Description, Encoder, EncoderConfig, Features
from batchproj.errors import SpaceError
from batchproj.media import AudioSpec, Segment, Spec
from batchproj.model_folder import complete_config, other_kind, read_config
from batchproj.schema import Modality
from batchproj.tokens import load_tokenizer, require_tokenizer
from batchproj.weights import LocalModel

if TYPE_CHECKING:
    import torch

    from batchproj.torch_runtime import Batches

Array = npt.NDArray[np.float32]
Forward = Callable[["torch.Tensor"], "torch.Tensor"]
"""(B, F, M) decibels -> what comes of each row, float32."""

_FROM_CONFIG = ["text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids"]
"""Counted up or all zero: a file that lacks them loses nothing."""


class Config(EncoderConfig):
    """One tower with its projection; the other one's weights are not loaded.

    Sound longer than the model's window (10 s) is cut into windows, a vector each; what is shorter
    is repeated or filled up as the model's feature extractor says.
    """

    modalities: ClassVar[frozenset[Modality]] = frozenset({Modality.AUDIO, Modality.TEXT})

    def describe(self, model: LocalModel, modality: Modality) -> Description:
        """D and all that decides a feature of `modality`, from the folder's JSON files."""
        tower = self.describe_tokens(model, modality)
        return Description(int(_whole_config(model.path).projection_dim), tower.decides, longest=tower.longest)

    def describe_tokens(self, model: LocalModel, modality: Modality) -> Description:
        """Of the tower's last states: the text's tokens, or the places of the last map of the sound."""
        self.require(modality)
        whole = _whole_config(model.path)
        decides: dict[str, Any] = {
            "kind": self.kind,
            "weights": model.digest,
            "tower": modality.value,
            "dtype": self.dtype,
        }
        if modality is Modality.AUDIO:
            wanted = _sound_input(model.path, whole)
            decides["preprocess"] = wanted.decides()
            return Description(int(whole.audio_config.hidden_size), decides, longest=wanted.window_s)
        require_tokenizer(model.path)
        decides["max_tokens"] = _max_tokens(whole)
        return Description(int(whole.text_config.hidden_size), decides, longest=decides["max_tokens"])

    def build(self, model: LocalModel, modality: Modality, threads: int) -> Encoder:
        """Load one tower."""
        from batchproj import torch_runtime

        self.require(modality)
        torch_runtime.use_threads(threads)
        whole = _whole_config(model.path)
        return (
            _sound(model.path, whole, self.dtype)
            if modality is Modality.AUDIO
            else _text(model.path, whole, self.dtype)
        )


class ClapSoundEncoder:
    """The loaded sound tower; `pooled` gives features (B, D), `places` (B, T, width)."""

    def __init__(self, pooled: Forward, places: Forward, wanted: ClapInput, dim: int, dtype: torch.dtype) -> None:
        self._input, self._mel, self._dim = wanted, ClapMel(wanted), dim
        self._pooled, self._places = _batches(pooled, dtype), _batches(places, dtype)
        self.spec: Spec = AudioSpec(wanted.sample_rate, wanted.window_s)

    def encode(self, segments: Sequence[Segment]) -> Features:
        """Sounds (N,) at the spec's rate, up to a window each -> (B, D) float32, unit norm."""
        if not segments:
            return np.empty((0, self._dim), np.float32)
        return np.stack(self._run(self._pooled, segments))

    def encode_tokens(self, segments: Sequence[Segment]) -> list[Features]:
        """Sounds as in `encode` -> the places of the last map, (T, width) float32 each."""
        return self._run(self._places, segments)

    def _run(self, sounds: Batches[Array], segments: Sequence[Segment]) -> list[Features]:
        from batchproj.torch_runtime import forward_images

        mels = [self._decibels(np.asarray(segment.data, np.float32)) for segment in segments]
        return sounds.run(mels, key=lambda _: "window", full=lambda _: forward_images())

    def _decibels(self, samples: Array) -> Array:
        if len(samples) > self._input.window:
            seconds, most = len(samples) / self._input.sample_rate, self._input.window_s
            raise SpaceError(
                f"a sound of {seconds:.1f} s, at most {most} s expected: decode with the encoder's own spec"
            )
        return self._mel(samples)


def _sound(folder: Path, whole: Any, dtype: Literal["bf16", "fp32"]) -> ClapSoundEncoder:
    import torch
    from transformers import ClapAudioModelWithProjection

    from batchproj import torch_runtime

    tower = torch_runtime.load_pretrained(ClapAudioModelWithProjection, folder, dtype, config=whole.audio_config)
    _enter_in_float32(tower.audio_model.audio_encoder, tower.dtype)

    def run(mels_BFM: torch.Tensor) -> Any:
        # of a window nothing is left out, and so there is nothing to fuse
        return tower(input_features=mels_BFM[:, None], is_longer=torch.zeros(len(mels_BFM), 1, dtype=torch.bool))

    def pooled(mels_BFM: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(run(mels_BFM).audio_embeds.float())

    def places(mels_BFM: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = run(mels_BFM).last_hidden_state.flatten(2).transpose(1, 2)
        return found

    return ClapSoundEncoder(pooled, places, _sound_input(folder, whole), int(whole.projection_dim), tower.dtype)


def _batches(features: Forward, dtype: torch.dtype) -> Batches[Array]:
    import torch

    from batchproj.accelerator import Replayed, stacked
    from batchproj.torch_runtime import batches, to_host

    of_mels = Replayed(features)

    def forward(mels: Sequence[Array]) -> Any:
        with torch.inference_mode():
            return to_host(of_mels(stacked(mels)))

    return batches(forward, dtype)


def _enter_in_float32(encoder: Any, dtype: torch.dtype) -> None:
    """Decibels up to 100 lose half of one in bf16: normalise and stretch them before they are rounded."""
    encoder.batch_norm.float()
    encoder.patch_embed.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype), *inputs[1:]))


def _text(folder: Path, whole: Any, dtype: Literal["bf16", "fp32"]) -> Encoder:
    import torch
    from transformers import ClapTextModelWithProjection

    from batchproj import torch_runtime
    from batchproj.text_encoder import TextEncoder

    tower = torch_runtime.load_pretrained(
        ClapTextModelWithProjection, folder, dtype, unused=_FROM_CONFIG, config=whole.text_config
    )

    def states(ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = tower(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        return found

    def pooled(ids_BL: torch.Tensor, mask_BL: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(tower(input_ids=ids_BL, attention_mask=mask_BL).text_embeds.float())

    tokenizer, width = load_tokenizer(folder, _max_tokens(whole)), int(whole.text_config.hidden_size)
    return TextEncoder(tokenizer, states, pooled, int(whole.projection_dim), width, tower.dtype)


def _whole_config(folder: Path) -> Any:
    if (found := read_config(folder).get("model_type")) != "clap":
        raise SpaceError(f"'{found}' in {folder} is not a CLAP model: {other_kind(found, 'kind clap takes no other')}")
    return complete_config(folder)


def _max_tokens(whole: Any) -> int:
    """Positions are numbered from pad_token_id + 1, as in RoBERTa."""
    return int(whole.text_config.max_position_embeddings) - int(whole.text_config.pad_token_id) - 1


def _sound_input(folder: Path, whole: Any) -> ClapInput:
    """The folder's settings; SpaceError if they make spectrograms that its model does not take."""
    wanted, tower = clap_input(folder), whole.audio_config
    most = tower.spec_size * (tower.spec_size // tower.num_mel_bins)
    if wanted.mels != tower.num_mel_bins or wanted.frames > most:
        raise SpaceError(
            f"sound settings in {folder} make {wanted.frames} frames of {wanted.mels} mels, its model takes {most} "
            f"of {tower.num_mel_bins}: use the preprocessor_config.json that belongs to the model"
        )
    return wanted
