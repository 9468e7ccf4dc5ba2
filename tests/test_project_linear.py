"""The linear projector, and what every projector promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from batchproj.errors import SpaceError
from batchproj.project import kinds, load, loads, parse_config
from batchproj.project.linear import LinearProjector


def linear(in_dim: int, out_dim: int, seed: int = 0) -> LinearProjector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = parse_config({"kind": "linear", "in_dim": in_dim, "out_dim": out_dim}).build()
    assert isinstance(projector, LinearProjector)
    return projector


def features(rows: int, dims: int) -> np.ndarray:
    return np.random.default_rng(0).normal(3, 2, (rows, dims)).astype(np.float32)


def test_keeps_rows_and_unit_norm() -> None:
    vectors = linear(8, 4).project(features(70, 8))
    assert vectors.shape == (70, 4)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-6)


def test_is_the_matrix_it_says() -> None:
    projector = linear(2, 2)
    projector.load_state_dict(
        {
            "mean": torch.tensor([1.0, 0.0]),
            "scale": torch.tensor([2.0, 1.0]),
            "map.weight": torch.tensor([[0.0, 3.0], [1.0, 0.0]]),
            "map.bias": torch.tensor([0.0, 1.0]),
        }
    )
    # standardised to (1, 1), mapped to (3, 1 + 1)
    np.testing.assert_allclose(projector.project([[3.0, 1.0]]), [np.array([3, 2]) / np.sqrt(13)], rtol=1e-6)


# 1280 -> 384 is the builtin image projector; with few outputs BLAS treats rows at the edge differently
@pytest.mark.parametrize(("in_dim", "out_dim"), [(1280, 384), (384, 384), (13, 5), (31, 3), (5, 1)])
def test_a_row_depends_on_itself_alone(in_dim: int, out_dim: int) -> None:
    projector, rows = linear(in_dim, out_dim), features(101, in_dim)
    whole = projector.project(rows)
    order = np.random.default_rng(1).permutation(101)
    np.testing.assert_array_equal(projector.project(rows[order]), whole[order])
    np.testing.assert_array_equal(projector.project(rows[40:47]), whole[40:47])
    for number in (0, 33, 100):
        np.testing.assert_array_equal(projector.project(rows[number : number + 1])[0], whole[number])


def test_float16_features_are_taken_as_they_are() -> None:
    half = features(5, 8).astype(np.float16)
    np.testing.assert_array_equal(linear(8, 4).project(half), linear(8, 4).project(half.astype(np.float32)))


def test_no_rows_give_no_vectors() -> None:
    assert linear(8, 4).project(np.empty((0, 8), np.float32)).shape == (0, 4)


def test_other_dimensions_are_refused_with_both_numbers() -> None:
    with pytest.raises(SpaceError, match=r"\(3, 9\).*trained on 8"):
        linear(8, 4).project(features(3, 9))


def test_standardises_and_leaves_constant_features_at_zero() -> None:
    projector, rows = linear(3, 2), features(50, 3)
    rows[:, 1] = 7
    projector.standardise_to(torch.from_numpy(rows))
    standard = projector.standardise(torch.from_numpy(rows)).numpy()
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(standard.std(axis=0), [1, 0, 1], rtol=1e-5)


def test_blends_with_another_linear_map() -> None:
    projector, other, rows = linear(8, 4), linear(8, 4, seed=1), torch.from_numpy(features(6, 8))
    with torch.no_grad():
        expected = 0.25 * projector.head(rows) + other.head(rows)
        projector.blend(0.25, other.map.weight, other.map.bias)
        torch.testing.assert_close(projector.head(rows), expected)
    assert projector.has_linear_path


def test_comes_back_from_its_file(tmp_path: Path) -> None:
    projector, rows = linear(8, 4), features(10, 8)
    projector.standardise_to(torch.from_numpy(rows))
    projector.save(tmp_path / "linear.safetensors")
    again = load(tmp_path / "linear.safetensors")
    assert isinstance(again, LinearProjector)
    assert again.config == projector.config
    np.testing.assert_array_equal(again.project(rows), projector.project(rows))
    assert projector.to_bytes() == again.to_bytes()


def test_what_is_no_projector_is_refused() -> None:
    from safetensors.torch import save

    with pytest.raises(SpaceError, match="no projector config"):
        loads(save({"weight": torch.zeros(2)}))
    with pytest.raises(SpaceError, match="projector"):
        loads(b"<html>not found</html>")
    config = linear(8, 4).config.model_dump_json()
    with pytest.raises(SpaceError, match="disagree"):
        loads(save({"map.weight": torch.zeros(2, 2)}, metadata={"config": config}))


def test_unknown_kinds_name_the_nearest_present() -> None:
    assert {"linear", "mlp"} <= set(kinds())
    with pytest.raises(SpaceError, match=r"no projector kind 'liner'.*'linear'"):
        parse_config({"kind": "liner", "in_dim": 8, "out_dim": 4})
    with pytest.raises(SpaceError, match=r"'biass'.*'bias'"):
        parse_config({"kind": "linear", "in_dim": 8, "out_dim": 4, "biass": False})
