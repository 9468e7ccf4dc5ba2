"""Text -> one vector per piece: any text model of transformers, sentence-transformers layout respected.

Encoders (BERT and its like), the encoder half of T5 (Flan-T5, UL2, mT5, UMT5), and decoder-only
language models (Llama, Qwen, Mistral, Gemma, GLM), whose last token alone has seen the whole text.
B rows, L tokens, D encoder dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from batchproj.encode import Description, Encoder, EncoderConfig
from batchproj.errors import SpaceError
from batchproj.model_folder import complete_config, other_kind, read_config, read_json, require_known
from batchproj.schema import Modality
from batchproj.segments import LEAST_TOKENS
from batchproj.sentence_layout import Pooling, SentenceLayout, lowercases, read_layout, stated_prompts, stated_tokens
from batchproj.tokens import load_tokenizers, require_tokenizer
from batchproj.weights import LocalModel

if TYPE_CHECKING:
    import torch

DEFAULT_TOKENS = 512
"""Where a model states no limit (T5 without one in its files), or one far beyond any text worth one vector
(language models, of 32,768 and more): what T5 was trained on, and what sentence encoders usually take."""

_POSITION_OFFSET = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"})
"""Model types that number positions from pad_token_id + 1, so take that many tokens fewer."""
_T5 = frozenset({"t5", "mt5", "umt5"})
"""Encoder-decoders whose encoder transformers loads by itself; the decoder's weights are never read."""
_CAUSAL = frozenset(
    "bloom cohere cohere2 deepseek_v3 falcon gemma gemma2 gemma3_text gemma3n_text gemma4_text glm glm4 "  # noqa: SIM905
    "glm4_moe gpt2 gpt_neo gpt_neox gpt_oss gptj granite llama ministral mistral mixtral modernbert-decoder olmo olmo2 "
    "olmo3 opt phi phi3 qwen2 qwen2_moe qwen3 qwen3_5_text qwen3_moe qwen3_next smollm3 stablelm starcoder2".split()
)
"""Decoder-only language models, also if saved without their head; of others a class named …ForCausalLM tells."""
_SWITCHED = frozenset("bert camembert electra megatron-bert rembert roberta roformer xlm-roberta".split())  # noqa: SIM905
"""Encoders whose class …ForCausalLM is causal only if `is_decoder` says so."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


class Prompts(BaseModel):
    """What is put before a text of each role; None means: what the model's sentence-transformers files say."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    query: str | None = None
    document: str | None = None


@dataclass(frozen=True)
class _Layout:
    """How token states become one vector, how many tokens fit, and the prompt of each role."""

    sentence: SentenceLayout
    max_tokens: int
    prompts: dict[str, str]


class Config(EncoderConfig):
    """A text encoder; None means: as the model's sentence-transformers files say.

    A folder without those files is not normalised, and pooled by `mean`; a decoder-only model by
    `last`, for a token of such a model sees those before it alone, and the mean would mostly be of
    tokens that have not seen the text. What the tokenizer of the folder puts at the end (T5's
    `</s>`, an end mark or nothing) is that last token. `max_tokens` of a T5 without a stated limit,
    and of a decoder-only model without sentence-transformers files, is 512 if it is not given.

    `prompts` go before a text as they are: items have the document's, what is searched by the query's.
    `dims` keeps so many of the first dimensions, of models trained for it, and then makes the unit
    length new: Kusupati et al. 2022 (Matryoshka representations), arXiv:2205.13147.
    """

    modalities: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_tokens: int | None = None
    prompts: Prompts | None = None
    dims: int | None = Field(default=None, ge=1)

    def describe(self, model: LocalModel, modality: Modality) -> Description:
        """D and all that decides a text's feature, from the folder's JSON files."""
        tokens = self.describe_tokens(model, modality)
        sentence = self._layout(model.path).sentence
        decides = {**tokens.decides, "pooling": sentence.pooling, "normalize": sentence.normalize}
        # only what is set: collections made before there was such a choice stay valid
        if self.dims is not None:
            decides["dims"] = self.dims
        return Description(self._dim(sentence.width(tokens.dim)), decides, longest=tokens.longest)

    def describe_tokens(self, model: LocalModel, modality: Modality) -> Description:
        """Of the last layer's states, the special tokens' among them."""
        self.require(modality)
        layout = self._layout(model.path)
        decides = {
            "kind": self.kind,
            "weights": model.digest,
            "max_tokens": layout.max_tokens,
            "dtype": self.dtype,
        }
        if lowercases(model.path):
            decides["lowercase"] = True
        if any(layout.prompts.values()):
            decides |= {"prompts": layout.prompts, "include_prompt": layout.sentence.include_prompt}
        is_mean = layout.sentence.pooling == "mean" and not layout.sentence.dense and self.dims is None
        return Description(_hidden_size(model.path), decides, is_mean, layout.max_tokens)

    def build(self, model: LocalModel, modality: Modality, threads: int) -> Encoder:
        """Load model and tokenizer; SpaceError if the folder has no usable tokenizer."""
        return self._build(model, modality, threads, "document")

    def build_for_queries(self, model: LocalModel, modality: Modality, threads: int) -> Encoder:
        """The same, with the query's prompt before each text."""
        return self._build(model, modality, threads, "query")

    def _build(self, model: LocalModel, modality: Modality, threads: int, role: str) -> Encoder:
        import torch
        from transformers import AutoModel, AutoModelForTextEncoding

        from batchproj import torch_runtime
        from batchproj.accelerator import device, is_apart
        from batchproj.packed_texts import PackedTexts
        from batchproj.text_encoder import TextEncoder
        from batchproj.varlen_texts import VarlenTexts

        self.require(modality)
        torch_runtime.use_threads(threads)
        layout = self._layout(model.path)
        loader = AutoModelForTextEncoding if _model_type(model.path) in _T5 else AutoModel
        loaded = torch_runtime.load_pretrained(loader, model.path, self.dtype, unused=["pooler."])
        loaded.config.use_cache = False  # each text is read once: keys and values for a next token would be waste
        width = int(loaded.config.hidden_size)
        dim = self._dim(layout.sentence.width(width))
        pooled = _Pooled(loaded, layout.sentence, dim, device())
        tokenizers = load_tokenizers(model.path, layout.max_tokens, layout.prompts, lowercase=lowercases(model.path))
        packed = varlen = None
        if self._is_packed(model.path, loaded, layout, role):
            pad = tokenizers[role].pad
            if is_apart():
                told = (layout.sentence.pooling, pooled.finish)
                varlen = VarlenTexts(loaded, *told, torch_runtime.forward_tokens(width), pad)
            else:
                packed = PackedTexts(loaded, pooled.pool, torch_runtime.packed_tokens(width), pad)
                if loaded.dtype == torch.float32 and packed.shows_places():
                    packed = None
        return TextEncoder(
            tokenizers[role],
            pooled.states,
            pooled,
            dim,
            width,
            loaded.dtype,
            routed=any(getattr(loaded.config, name, None) for name in _EXPERTS),
            skipped=0 if layout.sentence.include_prompt else tokenizers[role].prompt_tokens,
            packed=packed,
            varlen=varlen,
        )

    def _dim(self, width: int) -> int:
        """What `dims` leaves of `width`."""
        if self.dims is not None and self.dims > width:
            raise SpaceError(f"dims is {self.dims}, this model's vectors have {width}")
        return self.dims or width

    def _is_packed(self, folder: Path, loaded: Any, layout: _Layout, role: str) -> bool:
        """An accelerator's kernel wants bf16 and heads of a multiple of 8. On a CPU a dense layer after pooling would
        see as many rows as texts of one length came together, and that shows. In fp32 so does where a head's numbers
        begin within a line of 64 bytes; and there a query, which comes alone, is done in less time than a row takes.
        """
        import torch

        from batchproj.accelerator import is_apart
        from batchproj.packed_texts import FIRST_POSITION
        from batchproj.torch_runtime import forward_tokens

        if loaded.config.model_type not in FIRST_POSITION or _is_causal(folder):
            return False
        head = loaded.config.hidden_size // loaded.config.num_attention_heads
        if is_apart():
            fits = layout.max_tokens <= forward_tokens(loaded.config.hidden_size)
            return fits and head % 8 == 0 and loaded.dtype == torch.bfloat16
        suits = loaded.dtype == torch.bfloat16 or (role == "document" and head % 16 == 0)
        return suits and not layout.sentence.dense

    def _layout(self, folder: Path) -> _Layout:
        _refuse_unsuitable(folder)
        require_tokenizer(folder)
        default = SentenceLayout("last" if _is_causal(folder) else "mean")
        sentence = read_layout(folder, self.pooling) or replace(default, pooling=self.pooling or default.pooling)
        if self.normalize is not None:
            sentence = replace(sentence, normalize=self.normalize)
        own = {} if self.prompts is None else self.prompts.model_dump(exclude_none=True)
        return _Layout(sentence, self._max_tokens(folder), {**stated_prompts(folder), **own})

    def _max_tokens(self, folder: Path) -> int:
        limit = _token_limit(folder)
        if self.max_tokens is not None:
            if not LEAST_TOKENS <= self.max_tokens <= (limit or self.max_tokens):
                most = f"to {limit}" if limit else "or more"
                raise SpaceError(f"max_tokens is {self.max_tokens}, this model takes {LEAST_TOKENS} {most}")
            return self.max_tokens
        if _is_causal(folder) and stated_tokens(folder) is None:
            return min(limit or DEFAULT_TOKENS, DEFAULT_TOKENS)
        if limit is None and _model_type(folder) in _T5:
            return DEFAULT_TOKENS
        if limit is None:
            raise SpaceError(f"the model in {folder} states no token limit: set max_tokens")
        return limit


class _Pooled:
    """A loaded model with the layers after it; vectors are pooled, cut to `dim` and normalised in float32."""

    def __init__(self, model: Any, sentence: SentenceLayout, dim: int, device: torch.device) -> None:
        self._model, self._sentence, self._dim = model, sentence, dim
        self._dense = [layer.build(device) for layer in sentence.dense]

    def states(self, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """States (B, L, D) of the last layer."""
        states_BLD: torch.Tensor = self._model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        return states_BLD

    def __call__(
        self, ids_BL: torch.Tensor, mask_BL: torch.Tensor, starts_B: torch.Tensor, ends_B: torch.Tensor
    ) -> torch.Tensor:
        return self.pool(self.states(ids_BL, mask_BL), starts_B, ends_B)

    def pool(self, states_BLD: torch.Tensor, starts_B: torch.Tensor, ends_B: torch.Tensor) -> torch.Tensor:
        """States (B, L, D) -> (B, D), and what comes after."""
        return self.finish(pool(states_BLD, starts_B, ends_B, self._sentence.pooling))

    def finish(self, pooled_BD: torch.Tensor) -> torch.Tensor:
        """What comes after pooling: (B, width) -> (B, D)."""
        import torch

        for layer in self._dense:
            pooled_BD = layer(pooled_BD)
        pooled_BD = pooled_BD[:, : self._dim]
        return torch.nn.functional.normalize(pooled_BD) if self._sentence.normalize else pooled_BD


def pool(states_BLD: torch.Tensor, starts_B: torch.Tensor, ends_B: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Token states -> (B, D) float32, of the tokens from `starts_B` to before `ends_B` of each row."""
    import torch

    rows_B = torch.arange(len(ends_B), device=ends_B.device)
    if pooling == "cls":
        return states_BLD[rows_B, starts_B].float()
    if pooling == "last":
        return states_BLD[rows_B, ends_B - 1].float()
    places_L = torch.arange(states_BLD.shape[1], device=ends_B.device)
    pooled_BL = (places_L >= starts_B[:, None]) & (places_L < ends_B[:, None])
    return (states_BLD.float() * pooled_BL[:, :, None]).sum(1) / (ends_B - starts_B)[:, None]


def _model_type(folder: Path) -> str:
    return str(read_config(folder).get("model_type"))


def _refuse_unsuitable(folder: Path) -> None:
    """Models of several towers have a kind of their own, or none; of encoder-decoders we load T5's half."""
    config = read_config(folder)
    name = config.get("model_type")
    if "text_config" in config or "vision_config" in config:
        way = other_kind(name, "take its text model alone, saved in a folder of its own")
        raise SpaceError(f"'{name}' in {folder} has towers for several modalities: {way}")
    if name not in _T5 and (config.get("is_encoder_decoder") or name == "bart"):
        raise SpaceError(
            f"'{name}' in {folder} is an encoder-decoder: kind text takes encoders, decoders, and the encoder half of "
            f"{', '.join(sorted(_T5))}"
        )
    if not name:
        raise SpaceError(f"config.json in {folder} names no model_type: a transformers text model was expected")
    if name not in _T5 | _CAUSAL | _SWITCHED | _POSITION_OFFSET:
        require_known(folder)
    if kind := other_kind(name, ""):
        raise SpaceError(f"'{name}' in {folder} is no text model: {kind}")


def _is_causal(folder: Path) -> bool:
    """Whether a token sees only those before it."""
    config = read_config(folder)
    if config.get("is_causal") is False or (config.get("model_type") in _SWITCHED and not config.get("is_decoder")):
        return False
    # heeded by Gemma alone, where "vision" leaves text causal
    if str(config.get("model_type")).startswith("gemma") and config.get("use_bidirectional_attention") in (True, "all"):
        return False
    names = config.get("architectures") or []
    return config.get("model_type") in _CAUSAL or any(name.endswith("ForCausalLM") for name in names)


def _token_limit(folder: Path) -> int | None:
    """The smallest limit stated; None if none is."""
    config = read_config(folder)
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if positions is not None and config["model_type"] in _POSITION_OFFSET:
        positions -= config.get("pad_token_id", 1) + 1
    stated = [stated_tokens(folder), read_json(folder / "tokenizer_config.json").get("model_max_length"), positions]
    # a tokenizer without a limit says 1e30
    sensible = [int(limit) for limit in stated if limit is not None and limit < 1_000_000]
    return min(sensible, default=None)


def _hidden_size(folder: Path) -> int:
    config = read_config(folder)
    for name in ("hidden_size", "d_model", "dim"):
        if name in config:
            return int(config[name])
    return int(complete_config(folder).hidden_size)
