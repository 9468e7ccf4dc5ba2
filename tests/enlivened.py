"""Tiny models that tell one item from another."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def enlivened(folder: Path) -> Path:
    """The model there, with every matrix of normal numbers that keep the size of what goes through it.

    Those of transformers' own initialisation are so small that whatever a model is given, its vectors are alike.
    """
    state = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    for name, value in state.items():
        if value.is_floating_point() and value.ndim >= 2:
            state[name] = torch.randn_like(value) * value[0].numel() ** -0.5
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
