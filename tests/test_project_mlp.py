"""The MLP projector."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from batchproj.errors import SpaceError
from batchproj.project import loads, parse_config, plain_kind
from batchproj.project.mlp import MlpProjector


def mlp(in_dim: int, out_dim: int, **options: Any) -> MlpProjector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projector = parse_config({"kind": "mlp", "in_dim": in_dim, "out_dim": out_dim, **options}).build()
    assert isinstance(projector, MlpProjector)
    return projector


def features(rows: int, dims: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, dims)).astype(np.float32)


def test_starts_as_its_linear_path() -> None:
    projector, rows = mlp(8, 4, hidden=(16,)), features(6, 8)
    assert projector.skip is not None
    linear = rows @ projector.skip.weight.detach().numpy().T
    linear /= np.linalg.norm(linear, axis=1, keepdims=True)
    np.testing.assert_allclose(projector.project(rows), linear, atol=1e-6)


@pytest.mark.parametrize("hidden", [(16,), (16, 12, 24)])
def test_has_the_layers_asked_for(hidden: tuple[int, ...]) -> None:
    projector = mlp(8, 4, hidden=hidden, skip=False)
    assert projector.skip is None
    widths = [layer.out_features for layer in projector.layers if isinstance(layer, torch.nn.Linear)]
    assert tuple(widths) == hidden
    assert projector.project(features(3, 8)).shape == (3, 4)


def test_drops_units_in_training_only() -> None:
    projector, rows = mlp(8, 4, hidden=(64,), skip=False), torch.from_numpy(features(3, 8))
    projector.train()
    assert not torch.equal(projector(rows), projector(rows))
    np.testing.assert_array_equal(projector.project(rows.numpy()), projector.project(rows.numpy()))


@pytest.mark.parametrize(("in_dim", "hidden", "out_dim"), [(384, (1024,), 384), (13, (7,), 5)])
def test_a_row_depends_on_itself_alone(in_dim: int, hidden: tuple[int, ...], out_dim: int) -> None:
    projector, rows = mlp(in_dim, out_dim, hidden=hidden, skip=False), features(70, in_dim)
    whole = projector.project(rows)
    order = np.random.default_rng(1).permutation(70)
    np.testing.assert_array_equal(projector.project(rows[order]), whole[order])
    np.testing.assert_array_equal(projector.project(rows[69:])[0], whole[69])


def test_comes_back_from_its_bytes() -> None:
    projector, rows = mlp(8, 4, hidden=(16, 12), dropout=0.1), features(10, 8)
    again = loads(projector.to_bytes())
    assert again.config == projector.config
    np.testing.assert_array_equal(again.project(rows), projector.project(rows))


@pytest.mark.parametrize("wrong", [{"hidden": (0,)}, {"dropout": 1.0}])
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpaceError, match=next(iter(wrong))):
        mlp(8, 4, **wrong)


def test_blends_with_a_linear_map() -> None:
    projector, rows = mlp(8, 4, hidden=(16,)), torch.from_numpy(features(6, 8))
    weight, bias = torch.randn(4, 8), torch.randn(4)
    with torch.no_grad():
        torch.nn.init.normal_(projector.out.weight)
        expected = 0.5 * projector.eval().head(rows) + rows @ weight.T + bias
        projector.blend(0.5, weight, bias)
        torch.testing.assert_close(projector.head(rows), expected)
    assert projector.has_linear_path
    assert not mlp(8, 4, skip=False).has_linear_path


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_llava_names_are_so_many_matrices_and_nothing_beside(count: int) -> None:
    projector = parse_config({"kind": f"mlp{count}x_gelu", "in_dim": 8, "out_dim": 4}).build()
    assert isinstance(projector, MlpProjector)
    assert projector.config.kind == plain_kind(f"mlp{count}x_gelu") == "mlp"
    shapes = [tuple(module.weight.shape) for module in projector.modules() if isinstance(module, torch.nn.Linear)]
    assert shapes == [(4, 8), *[(4, 4)] * (count - 1)]
    assert loads(projector.to_bytes()).config == projector.config


def test_llava_names_take_options_and_end_at_four() -> None:
    fields = {"in_dim": 8, "out_dim": 4, "dropout": 0.1}
    assert parse_config({**fields, "kind": "mlp2x_gelu"}) == parse_config(
        {**fields, "kind": "mlp", "hidden": (4,), "skip": False}
    )
    with pytest.raises(SpaceError, match=r"no projector kind 'mlp5x_gelu'.*mlp1x_gelu to mlp4x_gelu"):
        parse_config({**fields, "kind": "mlp5x_gelu"})
