"""What a sentence-transformers folder says: how token states are pooled, and what comes after.

Source: Reimers and Gurevych 2019 (Sentence-BERT), arXiv:1908.10084.
B rows, D encoder dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from batchproj.errors import SpaceError
from batchproj.model_folder import read_json, read_json_list

if TYPE_CHECKING:
    import torch

Pooling = Literal["mean", "cls", "last"]

_OLD_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_NEW_NAMES: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_DOCUMENTS = ("document", "passage", "corpus")
_ACTIVATIONS = frozenset({"Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid"})
"""Of `torch.nn`; a folder names a class to import, and we import no other."""


@dataclass(frozen=True)
class Dense:
    """A layer over the pooled vector, as sentence-t5, gtr-t5 and LaBSE have; its weights are loaded later."""

    folder: Path
    in_dim: int
    out_dim: int
    bias: bool
    activation: str

    def build(self, device: torch.device) -> torch.nn.Module:
        """The layer in float32, on `device`; SpaceError if its weights are missing or of another shape."""
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        linear = torch.nn.Linear(self.in_dim, self.out_dim, bias=self.bias)
        file = self.folder / "model.safetensors"
        try:
            stored = load_file(file)
            linear.load_state_dict({name.removeprefix("linear."): value.float() for name, value in stored.items()})
        except FileNotFoundError:
            raise SpaceError(f"no model.safetensors in {self.folder}: save the model's dense layer as such") from None
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise SpaceError(f"{file} is not the layer that its config.json tells of: {reason}") from error
        activation: torch.nn.Module = getattr(torch.nn, self.activation)()
        return torch.nn.Sequential(linear, activation).to(device).eval().requires_grad_(False)


@dataclass(frozen=True)
class SentenceLayout:
    """How token states become one vector: pooled, through dense layers, to unit length or not.

    include_prompt: whether the tokens of a prompt are pooled with those of the text.
    """

    pooling: Pooling
    dense: tuple[Dense, ...] = ()
    normalize: bool = False
    include_prompt: bool = True

    def width(self, hidden: int) -> int:
        """D of a vector from states `hidden` wide; SpaceError if a layer does not fit the one before."""
        for layer in self.dense:
            if layer.in_dim != hidden:
                raise SpaceError(f"the dense layer in {layer.folder} takes {layer.in_dim} dims, it is given {hidden}")
            hidden = layer.out_dim
        return hidden


def read_layout(folder: Path, pooling: Pooling | None) -> SentenceLayout | None:
    """What the folder's modules.json says, None without one; `pooling`, if given, stands for the folder's.

    Raises SpaceError for modules other than Transformer, Pooling, any number of Dense, Normalize.
    """
    modules = read_json_list(folder / "modules.json")
    if not modules:
        return None
    kinds = [str(module.get("type")).rsplit(".", 1)[-1] for module in modules]
    normalize = kinds[-1] == "Normalize"
    inner = kinds[2:-1] if normalize else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(inner) - {"Dense"}:
        expected = "Transformer, Pooling, Dense, Normalize"
        raise SpaceError(f"{folder} is made of {', '.join(kinds)}: {expected} were expected")
    paths = [_inside(folder, str(module.get("path"))) for module in modules]
    return SentenceLayout(
        pooling or _pooling(paths[1] / "config.json"),
        tuple(_dense(path) for path in paths[2 : 2 + len(inner)]),
        normalize,
        read_json(paths[1] / "config.json").get("include_prompt", True) is not False,
    )


def _inside(folder: Path, named: str) -> Path:
    """A folder of the model's: what lies elsewhere is in no digest and in no fingerprint."""
    if Path(named).is_absolute() or ".." in Path(named).parts:
        raise SpaceError(f"{folder}/modules.json names '{named}', which is not in the model's folder: put it there")
    return folder / named


def stated_prompts(folder: Path) -> dict[str, str]:
    """What the folder's sentence-transformers files put before a "query" and before a "document"; "" is nothing.

    A document's prompt may also be called passage or corpus; where a role has none of its own, it is the default one.
    """
    path = folder / "config_sentence_transformers.json"
    found = read_json(path)
    prompts = {name: prompt for name, prompt in (found.get("prompts") or {}).items() if prompt is not None}
    default = found.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise SpaceError(f"default_prompt_name in {path} is '{default}', which is none of its prompts")
    usual = str(prompts.get(default, ""))
    document = next((prompts[name] for name in _DOCUMENTS if name in prompts), usual)
    return {"query": str(prompts.get("query", usual)), "document": str(document)}


def lowercases(folder: Path) -> bool:
    """Whether the folder's sentence-transformers files want texts in lower case, whatever its tokenizer does."""
    return read_json(folder / "sentence_bert_config.json").get("do_lower_case") is True


def stated_tokens(folder: Path) -> int | None:
    """The token limit in the folder's sentence-transformers files; None if there is none."""
    limit = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    return None if limit is None else int(limit)


def _pooling(path: Path) -> Pooling:
    found = read_json(path)
    named = found.get("pooling_mode", [])
    names = [named] if isinstance(named, str) else list(named)
    chosen = [_NEW_NAMES.get(name) for name in names]
    chosen += [_OLD_FLAGS.get(key) for key, on in found.items() if key.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] is None:
        raise SpaceError(f"pooling in {path} is not one of mean, cls, lasttoken: set pooling")
    return chosen[0]


def _dense(folder: Path) -> Dense:
    path = folder / "config.json"
    found = read_json(path)
    activation = str(found.get("activation_function", "torch.nn.modules.activation.Tanh"))
    package, _, name = activation.rpartition(".")
    if name not in _ACTIVATIONS or not (package == "torch.nn" or package.startswith("torch.nn.modules.")):
        raise SpaceError(f"activation '{activation}' in {path} is not supported: {', '.join(sorted(_ACTIVATIONS))} are")
    names = {found.get("module_input_name"), found.get("module_output_name")} - {None, "sentence_embedding"}
    if names or found.get("use_residual"):
        raise SpaceError(f"{path} is of a layer beside the pooled vector: a plain one over it was expected")
    try:
        return Dense(folder, int(found["in_features"]), int(found["out_features"]), bool(found.get("bias", True)), name)
    except (KeyError, TypeError, ValueError) as error:
        raise SpaceError(f"{path} has no usable {error}: in_features and out_features were expected") from error
