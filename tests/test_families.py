"""Every family from files to the table: the vectors are those of transformers, or timm, called directly.

What is called is the model's own class on what its own processor, feature extractor, tokenizer or transform makes of
the same files, all of them padded together where the model can be given a mask; then the documented pooling, and unit
length. Image processors are those on torchvision, transformers' default: ours are to the pixel those on Pillow
(test_pixels), and that the two differ by a grey level here and there is within the tolerance.

Weights are drawn anew (see `enlivened`): else all vectors are alike, and any would pass.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import timm
import torch
import transformers
import yaml
from conftest import WORDS
from enlivened import enlivened
from films import film
from in_process import run, vectors, without_ray
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from tiny_pictures import save_clip, save_siglip, save_timm, save_transformer
from tiny_sound import RATE, save_ast, save_wave, save_whisper
from tiny_text import save_bert, save_clap, save_qwen3, save_t5
from tiny_video import save_videomae, save_xclip
from waves import moving, picture, sound

from batchproj.schema import Modality

pytestmark = [  # of the reference: AST's extractor
    pytest.mark.filterwarnings("ignore:At least one mel filter"),
]
Array = npt.NDArray[np.float32]
FPS = 10
LEAST = {"fp32": 0.9999, "bf16": 0.999}
"""Cosine to the reference, which is in fp32."""
ALIKE = 0.998
"""Cosine that no two items of a family have: another item's vector would not pass, twice over."""


def auto(loader: str, folder: Path, **options: Any) -> Any:
    """A part of what transformers has, from a folder; models in float32."""
    return getattr(transformers, loader).from_pretrained(folder, local_files_only=True, **options)


def model(folder: Path, loader: str = "AutoModel") -> Any:
    return auto(loader, folder).eval()


def rgb(files: list[Path]) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in files]


def samples(files: list[Path]) -> list[Array]:
    return [soundfile.read(file, dtype="float32")[0] for file in files]


def frames(file: Path, count: int) -> list[npt.NDArray[np.uint8]]:
    """The frames on show at the middles of `count` equal shares of a film."""
    with av.open(io.BytesIO(file.read_bytes())) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    seconds = len(shown) / FPS
    return [shown[int((number + 0.5) * seconds / count * FPS)] for number in range(count)]


# ---- what transformers and timm make of files


def tower_images(folder: Path, files: list[Path]) -> Any:
    inputs = auto("AutoImageProcessor", folder)(rgb(files), return_tensors="pt")
    return model(folder).get_image_features(**inputs).pooler_output


def tower_texts(folder: Path, files: list[Path], padding: Any = True) -> Any:
    texts = [file.read_text() for file in files]
    inputs = auto("AutoTokenizer", folder)(texts, padding=padding, max_length=20, truncation=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    if padding == "max_length":  # SigLIP was trained without a mask
        inputs.pop("attention_mask")
    return model(folder).get_text_features(**inputs).pooler_output


def class_token(folder: Path, files: list[Path]) -> Any:
    inputs = auto("AutoImageProcessor", folder)(rgb(files), return_tensors="pt")
    return model(folder)(**inputs).last_hidden_state[:, 0]


def by_timm(folder: Path, files: list[Path]) -> Any:
    settings = json.loads((folder / "config.json").read_text())
    network: Any = timm.create_model(
        settings["architecture"], num_classes=7, pretrained_cfg=settings["pretrained_cfg"], **settings["model_args"]
    )
    network.load_state_dict(load_file(folder / "model.safetensors"))
    network.reset_classifier(0)
    transform: Any = create_transform(**resolve_model_data_config(network))
    return network.eval()(torch.stack([transform(shown) for shown in rgb(files)]))


def masked_mean(folder: Path, files: list[Path], loader: str = "AutoModel") -> Any:
    inputs = auto("AutoTokenizer", folder)([file.read_text() for file in files], padding=True, return_tensors="pt")
    whole = model(folder, loader)
    encoder = whole.get_encoder() if loader == "AutoModelForSeq2SeqLM" else whole
    mask_BL = inputs["attention_mask"]
    states_BLD = encoder(input_ids=inputs["input_ids"], attention_mask=mask_BL).last_hidden_state
    return (states_BLD * mask_BL[:, :, None]).sum(1) / mask_BL.sum(1, keepdim=True)


def last_token(folder: Path, files: list[Path]) -> Any:
    inputs = auto("AutoTokenizer", folder)([file.read_text() for file in files], padding=True, return_tensors="pt")
    assert inputs["attention_mask"][0, 0] == 0  # padded on the left
    states_BLD = model(folder)(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    return states_BLD[:, -1]


def clap_sounds(folder: Path, files: list[Path]) -> Any:
    inputs = auto("ClapFeatureExtractor", folder)(samples(files), sampling_rate=RATE, return_tensors="pt")
    return model(folder).get_audio_features(inputs["input_features"]).pooler_output


def ast(folder: Path, files: list[Path]) -> Any:
    inputs = auto("AutoFeatureExtractor", folder)(samples(files), sampling_rate=RATE, return_tensors="pt")
    return model(folder)(**inputs).pooler_output


def waves_alone(folder: Path, files: list[Path]) -> Any:
    """One by one, as models of group norm hear padding as silence."""
    extractor, network = auto("AutoFeatureExtractor", folder), model(folder)
    each = (extractor(heard, sampling_rate=RATE, return_tensors="pt")["input_values"] for heard in samples(files))
    return torch.stack([network(input_values=values).last_hidden_state[0].mean(0) for values in each])


def waves_padded(folder: Path, files: list[Path]) -> Any:
    extractor, network = auto("AutoFeatureExtractor", folder), model(folder)
    inputs = extractor(samples(files), sampling_rate=RATE, padding=True, return_tensors="pt")
    states_BTD = network(**inputs).last_hidden_state
    lengths = network._get_feat_extract_output_lengths(inputs["attention_mask"].sum(1)).tolist()
    return torch.stack([own[:length].mean(0) for own, length in zip(states_BTD, lengths, strict=True)])


def whisper(folder: Path, files: list[Path], *, padded: bool) -> Any:
    """The mean over the frames of the real sound, of 30 s or of the sound filled up to half a second."""
    mels = auto("AutoFeatureExtractor", folder)(samples(files), sampling_rate=RATE, return_tensors="pt")
    found = []
    for mel_MF, heard in zip(mels["input_features"], samples(files), strict=True):
        encoder, steps = model(folder).get_encoder(), 1500 if padded else -(-len(heard) // (RATE // 2)) * 25
        encoder.config.max_source_positions = steps
        encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[:steps])
        states_TD = encoder(mel_MF[None, :, : 2 * steps]).last_hidden_state[0]
        found.append(states_TD[: -(-len(heard) // (RATE // 50))].mean(0))
    return torch.stack(found)


def videomae(folder: Path, files: list[Path]) -> Any:
    clips = [np.stack(frames(file, 4)) for file in files]
    each = [auto("AutoVideoProcessor", folder)(clip, return_tensors="pt")["pixel_values"] for clip in clips]
    return model(folder)(torch.cat(each)).last_hidden_state.mean(1)


def xclip(folder: Path, files: list[Path]) -> Any:
    processor = auto("AutoImageProcessor", folder)
    pixels = processor([frames(file, 4) for file in files], return_tensors="pt")["pixel_values"]
    return model(folder).get_video_features(pixels).pooler_output


def clip_frames(folder: Path, files: list[Path]) -> Any:
    processor, whole, found = auto("AutoImageProcessor", folder), model(folder), []
    for file in files:
        inputs = processor([Image.fromarray(frame) for frame in frames(file, 8)], return_tensors="pt")
        features_TD = whole.get_image_features(**inputs).pooler_output
        found.append(torch.nn.functional.normalize(features_TD).mean(0))
    return torch.stack(found)


# ---- checkpoints


def processed(save: Callable[[Path], Any], processor: str, **geometry: Any) -> Callable[[Path], None]:
    """What `save` makes, with an image processor of transformers saved by itself."""

    def saved(folder: Path) -> None:
        save(folder)
        moments = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25]}
        getattr(transformers, processor)(**geometry, **moments).save_pretrained(folder)

    return saved


def clip_with_processor(folder: Path) -> None:
    """As transformers 5 saves a processor: settings of pictures in a file of both towers."""
    processed(save_clip, "CLIPImageProcessor", **CROPPED)(folder)
    images, texts = auto("AutoImageProcessor", folder), auto("AutoTokenizer", folder)
    (folder / "preprocessor_config.json").unlink()
    transformers.CLIPProcessor(images, texts).save_pretrained(folder)
    assert "image_processor" in json.loads((folder / "processor_config.json").read_text())


CROPPED = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
BOTH = {"size": {"height": 32, "width": 32}}
SQUASHED = {"crop_mode": "squash", "crop_pct": 0.9}


@dataclass(frozen=True)
class Family:
    """How a checkpoint is saved, which is `dim` wide, and what its own library makes of files: features (N, dim)."""

    kind: str
    modality: Modality
    dim: int
    save: Callable[[Path], Any]
    reference: Callable[[Path, list[Path]], Any]
    fields: dict[str, Any] = field(default_factory=dict)


TEXT, IMAGE, AUDIO, VIDEO = Modality.TEXT, Modality.IMAGE, Modality.AUDIO, Modality.VIDEO
SIGLIP = processed(save_siglip, "SiglipImageProcessor", **BOTH)
VIT = processed(partial(save_transformer, name="vit"), "ViTImageProcessor", **BOTH)
DINOV2 = processed(partial(save_transformer, name="dinov2"), "BitImageProcessor", **CROPPED)
DINOV3 = processed(partial(save_transformer, name="dinov3_vit"), "DINOv3ViTImageProcessor", **BOTH)
T5_MEAN = partial(masked_mean, loader="AutoModelForSeq2SeqLM")
FAMILIES = {
    "clip images": Family("clip", IMAGE, 24, clip_with_processor, tower_images),
    "clip texts": Family("clip", TEXT, 24, clip_with_processor, tower_texts),
    "siglip images": Family("clip", IMAGE, 32, SIGLIP, tower_images),
    "siglip texts": Family("clip", TEXT, 32, SIGLIP, partial(tower_texts, padding="max_length")),
    "vit": Family("vision", IMAGE, 32, VIT, class_token),
    "dinov2": Family("vision", IMAGE, 32, DINOV2, class_token),
    "dinov3": Family("vision", IMAGE, 32, DINOV3, class_token),
    "timm convnext": Family("vision", IMAGE, 64, partial(save_timm, name="convnext_atto", crop_pct=0.875), by_timm),
    "timm nfnet": Family("vision", IMAGE, 2304, partial(save_timm, name="nfnet_l0", **SQUASHED), by_timm),
    "bert": Family("text", TEXT, 32, save_bert, masked_mean),
    "t5": Family("text", TEXT, 32, save_t5, T5_MEAN),
    "qwen3": Family("text", TEXT, 32, save_qwen3, last_token),
    "clap sounds": Family("clap", AUDIO, 24, save_clap, clap_sounds),
    "clap texts": Family("clap", TEXT, 24, save_clap, tower_texts),
    "whisper": Family("whisper", AUDIO, 32, save_whisper, partial(whisper, padded=False)),
    "whisper, 30 s": Family(
        "whisper", AUDIO, 32, save_whisper, partial(whisper, padded=True), fields={"window": "padded"}
    ),
    "ast": Family("audio", AUDIO, 32, save_ast, ast),
    "wav2vec2, group norm": Family("audio", AUDIO, 32, partial(save_wave, name="wav2vec2-group"), waves_alone),
    "wav2vec2, layer norm": Family("audio", AUDIO, 32, partial(save_wave, name="wav2vec2-layer"), waves_padded),
    "hubert": Family("audio", AUDIO, 32, partial(save_wave, name="hubert-layer"), waves_padded),
    "wavlm": Family("audio", AUDIO, 32, partial(save_wave, name="wavlm-group"), waves_alone),
    "videomae": Family("video", VIDEO, 32, save_videomae, videomae),
    "xclip": Family("video", VIDEO, 32, save_xclip, xclip),
    "xclip texts": Family("video", TEXT, 32, save_xclip, tower_texts),
    "clip frames": Family("clip", VIDEO, 24, clip_with_processor, clip_frames),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[Modality, list[Path]]:
    """Three files of each modality, no two of one size or length; every edge is another than what models take."""
    home = tmp_path_factory.mktemp("corpus")
    found = {modality: [home / modality / f"{number}" for number in range(3)] for modality in Modality}
    for modality in Modality:
        (home / modality).mkdir()
    for number, (width, height) in enumerate([(70, 50), (45, 64), (97, 34)]):
        picture(width, height, number).save(file := found[IMAGE][number].with_suffix(".png"))
        found[IMAGE][number] = file
    for number, text in enumerate(["w3 w1", " ".join(WORDS), "w5 w6 w2 w9 w7"]):
        found[TEXT][number].with_suffix(".txt").write_text(text)
    for number, seconds in enumerate([0.52, 1.1, 0.87]):
        soundfile.write(found[AUDIO][number].with_suffix(".wav"), sound(seconds, number), RATE)
    for number, (count, size) in enumerate([(12, (64, 48)), (20, (46, 64)), (14, (80, 36))]):
        data = film(moving(count, *size, number), FPS, format="matroska", codec="ffv1")
        found[VIDEO][number].with_suffix(".mkv").write_bytes(data)
    return {modality: sorted((home / modality).iterdir()) for modality in Modality}


@pytest.fixture(scope="module")
def made(
    corpus: dict[Modality, list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], tuple[Path, Array]]]:
    """A family's folder and the unit vectors of its files by the reference, made once for both number formats."""
    done: dict[str, tuple[Path, Array]] = {}

    def make(name: str) -> tuple[Path, Array]:
        if name not in done:
            family, folder = FAMILIES[name], tmp_path_factory.mktemp("model")
            family.save(folder)
            if family.reference is not by_timm:  # whose weights are drawn wide enough
                enlivened(folder)
            with torch.inference_mode():
                expected = torch.nn.functional.normalize(family.reference(folder, corpus[family.modality])).numpy()
            done[name] = folder, expected
        return done[name]

    with without_ray():
        yield make


def embedded(source: Path, collection: Path, space: Path) -> dict[str, Array]:
    """Vectors by file name, of one run."""
    run(source, collection, space)
    return {uri.rpartition("/")[2]: np.frombuffer(value, np.float32) for uri, value in vectors(collection).items()}


@pytest.mark.parametrize("dtype", list(LEAST))
@pytest.mark.parametrize("name", list(FAMILIES))
def test_vectors_are_the_reference_s(
    name: str,
    dtype: str,
    corpus: dict[Modality, list[Path]],
    made: Callable[[str], tuple[Path, Array]],
    tmp_path: Path,
) -> None:
    family, (folder, expected) = FAMILIES[name], made(name)
    files = corpus[family.modality]
    others = expected @ expected.T - np.eye(len(files), dtype=np.float32)
    assert others.max() < ALIKE
    encoder = {"kind": family.kind, "model": str(folder), "dtype": dtype, **family.fields}
    space = tmp_path / "space.yaml"
    space.write_text(yaml.safe_dump({"dim": family.dim, str(family.modality): {"encoder": encoder}}))
    together = embedded(files[0].parent, tmp_path / "together", space)
    found = np.stack([together[file.name] for file in files])
    assert found.shape == (3, family.dim)
    assert (found * expected).sum(1).min() >= LEAST[dtype]
    (tmp_path / "one").mkdir()
    shutil.copy(files[1], tmp_path / "one")
    alone = embedded(tmp_path / "one", tmp_path / "alone", space)
    np.testing.assert_array_equal(alone[files[1].name], together[files[1].name])
