"""What every projector over tokens promises: `transformer` and `cross_attention`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchproj.errors import SpaceError
from batchproj.project import loads, parse_config, read_header
from batchproj.project.cross_attention import CrossAttentionProjector
from batchproj.project.linear import Config as LinearConfig
from batchproj.token_features import AskedFeatures, TokenFeatures
from batchproj.token_projector import TokenProjector, padded_batch

KINDS: dict[str, dict[str, Any]] = {
    "transformer": {"kind": "transformer", "layers": 2},
    "transformer-mean": {"kind": "transformer", "pooling": "mean"},
    "cross_attention": {"kind": "cross_attention", "queries": 3},
}
every_kind = pytest.mark.parametrize("name", KINDS)


def build(fields: dict[str, Any], in_dim: int = 24, out_dim: int = 20, **more: Any) -> TokenProjector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = {"width": 32, "heads": 2, "skip": False, "in_dim": in_dim, "out_dim": out_dim}
        projector = parse_config({**small, **fields, **more}).build()
    assert isinstance(projector, TokenProjector)
    return projector


def tokens(*lengths: int, dim: int = 24, seed: int = 0) -> TokenFeatures:
    random = np.random.default_rng(seed)
    return TokenFeatures.of([random.normal(3, 2, (length, dim)).astype(np.float16) for length in lengths])


THREADS = torch.get_num_threads()


@pytest.fixture(scope="module", autouse=True)
def threads_of_the_import() -> Iterator[None]:
    """Bits are promised for one number of threads, and models that other tests have loaded may have set another."""
    now = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(now)


LENGTHS = (3, 50, 7, 1, 120, 33, 8, 9, 16, 57, 50, 3)
BUILT = {name: build(fields) for name, fields in KINDS.items()}
WHOLE = {name: projector.project(tokens(*LENGTHS)) for name, projector in BUILT.items()}


@every_kind
def test_keeps_rows_and_unit_norm(name: str) -> None:
    vectors = WHOLE[name]
    assert vectors.shape == (len(LENGTHS), 20)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)
    assert BUILT[name].project(tokens(*LENGTHS)[[]]).shape == (0, 20)


@every_kind
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, len(LENGTHS) - 1), min_size=1, max_size=40))
def test_a_row_depends_on_itself_alone(name: str, rows: list[int]) -> None:
    np.testing.assert_array_equal(BUILT[name].project(tokens(*LENGTHS)[rows]), WHOLE[name][rows])


@every_kind
def test_rows_are_exact_where_the_place_in_a_batch_shows_and_at_real_widths(name: str) -> None:
    for fields in ({"out_dim": 3, "in_dim": 13}, {"out_dim": 384, "in_dim": 1280, "width": 256, "heads": 4}):
        projector, given_tokens = build(KINDS[name], **fields), tokens(*[49] * 23, 50, 17, dim=fields["in_dim"])
        whole = projector.project(given_tokens)
        for chosen in ([0], [22], [24, 23], [5, 6, 7]):
            np.testing.assert_array_equal(projector.project(given_tokens[chosen]), whole[chosen])


@every_kind
def test_padding_says_nothing(name: str) -> None:
    """The plain modules on one segment, without any padding, give the same but for rounding."""
    given_tokens = tokens(*LENGTHS)
    for row, tokens_TD in enumerate(given_tokens):
        with torch.inference_mode():
            expected = BUILT[name](*padded_batch(TokenFeatures.of([tokens_TD]), len(tokens_TD)))[0].numpy()
        np.testing.assert_allclose(WHOLE[name][row], expected, atol=1e-5)


@every_kind
def test_order_counts_and_every_token_does(name: str) -> None:
    (one,) = tokens(40)
    vectors = BUILT[name].project(TokenFeatures.of([one, one[::-1], one[:39]]))
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-5


@every_kind
def test_starts_as_the_linear_path_of_the_tokens_mean_and_spread(name: str) -> None:
    projector, given_tokens = build(KINDS[name], skip=True), tokens(*LENGTHS)
    projector.standardise_to(given_tokens)
    assert projector.skip is not None
    standard = projector.standardise_summary(torch.from_numpy(given_tokens.mean_std())).numpy()
    linear = standard @ projector.skip.weight.detach().numpy().T
    np.testing.assert_allclose(
        projector.project(given_tokens), linear / np.linalg.norm(linear, axis=1, keepdims=True), atol=1e-5
    )


@every_kind
def test_standardises_tokens_and_their_summaries(name: str) -> None:
    projector, given_tokens = build(KINDS[name]), tokens(*LENGTHS)
    projector.standardise_to(given_tokens)
    standard = projector.standardise(torch.from_numpy(given_tokens.values.astype(np.float32))).numpy()
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standard.std(axis=0), 1, rtol=1e-4)
    summaries = projector.standardise_summary(torch.from_numpy(given_tokens.mean_std())).numpy()
    np.testing.assert_allclose(summaries.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(summaries.std(axis=0), 1, rtol=1e-3)


@every_kind
def test_comes_back_from_its_bytes(name: str) -> None:
    projector, given_tokens = build(KINDS[name]), tokens(*LENGTHS)
    projector.standardise_to(given_tokens)
    data = projector.to_bytes()
    again = loads(data)
    assert (again.config, again.to_bytes()) == (projector.config, data)
    np.testing.assert_array_equal(again.project(given_tokens), projector.project(given_tokens))
    header = read_header(data, "it")
    assert (header.takes, header.in_dim, header.out_dim) == ("tokens", 24, 20)


@every_kind
def test_query_tokens_have_the_vector_as_their_mean(name: str) -> None:
    queries = BUILT[name].query_tokens(tokens(*LENGTHS))
    assert queries.shape == (len(LENGTHS), 3 if name == "cross_attention" else 1, 20)
    mean = queries.mean(axis=1)
    np.testing.assert_allclose(WHOLE[name], mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)


@every_kind
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(name: str, value: float) -> None:
    broken = tokens(*LENGTHS)
    broken.values[broken.starts[2], 0] = value
    vectors = BUILT[name].project(broken)
    assert np.flatnonzero(np.isnan(vectors).any(axis=1)).tolist() == [2]
    np.testing.assert_array_equal(np.delete(vectors, 2, axis=0), np.delete(WHOLE[name], 2, axis=0))


@every_kind
def test_what_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(SpaceError, match=r"\(5, 24\).*takes tokens: embed with 'cache: tokens'"):
        BUILT[name].project(np.zeros((5, 24), np.float32))
    with pytest.raises(SpaceError, match=r"tokens of 9 dims.*trained on 24"):
        BUILT[name].project(tokens(3, dim=9))
    with pytest.raises(SpaceError, match=r"width is 30, expected a multiple of 2 \* heads = 8"):
        build(KINDS[name], width=30, heads=4)


def test_a_pooled_kind_takes_the_mean_or_mean_and_spread_if_it_is_twice_as_wide() -> None:
    given_tokens = tokens(*LENGTHS)
    torch.manual_seed(0)
    mean, both = (LinearConfig(in_dim=dim, out_dim=20).build() for dim in (24, 48))
    np.testing.assert_array_equal(mean.project(given_tokens), mean.project(given_tokens.mean()))
    np.testing.assert_array_equal(both.project(given_tokens), both.project(given_tokens.mean_std()))
    with pytest.raises(SpaceError, match=r"\(12, 24\).*trained on 7"):
        LinearConfig(in_dim=7, out_dim=20).build().project(given_tokens)


# --- one modality asks another --------------------------------------------------------------------


@pytest.fixture(scope="module")
def crossing() -> CrossAttentionProjector:
    projector = build({"kind": "cross_attention", "query_dim": 10, "layers": 2})
    assert isinstance(projector, CrossAttentionProjector)
    return projector


def test_features_of_another_modality_as_queries(crossing: CrossAttentionProjector) -> None:
    asked, heard = tokens(2, 9, 1, 30, 9, 2, dim=10, seed=1), tokens(50, 3, 33, 8, 3, 50)
    whole = crossing.cross(asked, heard)
    assert whole.shape == (6, 20)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1.0, rtol=1e-6)
    for chosen in ([0], [3], [5, 1], [4, 3, 2]):
        np.testing.assert_array_equal(crossing.cross(asked[chosen], heard[chosen]), whole[chosen])
    others = crossing.cross(asked[[5, 4, 3, 2, 1, 0]], heard)
    assert (np.abs(others - whole).max(axis=1) > 1e-4).all()  # what is asked counts


def test_padded_queries_say_nothing(crossing: CrossAttentionProjector) -> None:
    asked, heard = tokens(3, dim=10, seed=1), tokens(11)
    with torch.inference_mode():
        expected = crossing(*padded_batch(heard, 11), *padded_batch(asked, 3))[0].numpy()
    np.testing.assert_allclose(crossing.cross(asked, heard)[0], expected, atol=1e-5)


def test_every_weight_of_the_direct_form_can_be_trained() -> None:
    projector = build({"kind": "cross_attention", "query_dim": 10, "skip": True})
    assert isinstance(projector, CrossAttentionProjector)
    torch.nn.init.normal_(projector.out.weight)
    inputs = *padded_batch(tokens(5, 4), 5), *padded_batch(tokens(3, 2, dim=10), 3)
    projector(*inputs)[:, 0].sum().backward()
    assert [name for name, weight in projector.named_parameters() if weight.grad is None] == []


def test_the_direct_form_needs_both(crossing: CrossAttentionProjector) -> None:
    with pytest.raises(SpaceError, match="call 'cross' with both"):
        crossing.project(tokens(3))
    with pytest.raises(SpaceError, match=r"tokens of 9 dims.*trained on 10"):
        crossing.cross(tokens(3, dim=9), tokens(3))
    with pytest.raises(ValueError, match="2 segments ask 1"):
        crossing.cross(tokens(3, 3, dim=10), tokens(3))
    both = AskedFeatures.by(tokens(3, dim=10), tokens(3))
    with pytest.raises(SpaceError, match="no query tokens of its own"):
        crossing.query_tokens(both)
    with pytest.raises(SpaceError, match="a transformer projector without 'query_dim' is not asked"):
        BUILT["transformer"].project(both)


def test_the_direct_form_standardises_what_asks_too(crossing: CrossAttentionProjector) -> None:
    asked, heard = tokens(2, 9, 1, 30, dim=10, seed=1), tokens(50, 3, 33, 8)
    projector = loads(crossing.to_bytes())
    assert isinstance(projector, CrossAttentionProjector)
    projector.standardise_to(AskedFeatures.by(asked, heard))
    batch = *padded_batch(heard, 50), *padded_batch(asked, 30)
    standard, asked_BQ = projector.standardised(*batch)[3:]
    np.testing.assert_allclose(standard[asked_BQ].mean(dim=0), 0, atol=1e-5)
    np.testing.assert_allclose(standard[asked_BQ].std(dim=0, correction=0), 1, rtol=1e-4)
    assert loads(projector.to_bytes()).to_bytes() == projector.to_bytes()
