"""Convolutions that standardise their own weights at each call, turned into plain ones that did it once.

Source: Brock et al. 2021 (scaled weight standardisation), arXiv:2101.08692, as timm's NFNets have it.
"""

from __future__ import annotations

from typing import Any


def standardises(network: Any) -> bool:
    """Whether any layer does; needs no weights."""
    return any(isinstance(layer, _kinds()) for layer in network.modules())


def standardise(network: Any) -> None:
    """Put the standardised weights, of the dtype they have now, in the place of those layers."""
    for name, layer in list(network.named_children()):
        if isinstance(layer, _kinds()):
            setattr(network, name, _plain(layer))
        else:
            standardise(layer)


def _kinds() -> tuple[type, ...]:
    from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame

    return ScaledStdConv2d, ScaledStdConv2dSame


def _plain(layer: Any) -> Any:
    from timm.layers import Conv2dSame
    from torch.nn import Conv2d
    from torch.nn.functional import batch_norm

    # padding that depends on the size of the input, as TensorFlow's
    kind, padding = (Conv2dSame, 0) if getattr(layer, "same_pad", False) else (Conv2d, layer.padding)
    rest = (layer.stride, padding, layer.dilation, layer.groups, layer.bias is not None)
    plain = kind(layer.in_channels, layer.out_channels, layer.kernel_size, *rest, device="meta")
    rows = layer.weight.reshape(1, layer.out_channels, -1)
    gain = (layer.gain * layer.scale).view(-1)
    weight = batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=layer.eps)
    stored = {"weight": weight.reshape_as(layer.weight), **({} if layer.bias is None else {"bias": layer.bias})}
    plain.load_state_dict(stored, assign=True)
    return plain.requires_grad_(requires_grad=False)
