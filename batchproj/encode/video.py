"""Video models that see motion: VideoMAE, and X-CLIP with its text tower.

Sources: Tong et al. 2022 (VideoMAE), arXiv:2203.12602; Ni et al. 2022 (X-CLIP), arXiv:2208.02816.
B segments, T frames a model takes of one, S steps in time that come out, P patches, D width.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from batchproj.encode import Description, Encoder, EncoderConfig
from batchproj.encode.clip import ClipTextEncoder
from batchproj.errors import SpaceError
from batchproj.model_folder import complete_config, read_config, video_input
from batchproj.schema import Modality
from batchproj.tokens import load_tokenizer
from batchproj.weights import LocalModel

if TYPE_CHECKING:
    import torch

    from batchproj.video_encoder import States

_VIDEOMAE, _XCLIP = "videomae", "xclip"


class Config(EncoderConfig):
    """A video model; the number of frames is its own.

    Tokens are its states over time, and the feature is their mean. VideoMAE: of each pair of frames (a tubelet) the
    mean over its patches, so that the feature is the mean of all, as its classifier pools, without that classifier's
    norm. X-CLIP: the frames after the multi-frame integration transformer, whose mean is its video embedding.

    X-CLIP's text is embedded without the prompts that its classifier adds per video: a text's vector would else
    differ from video to video.
    """

    modalities: ClassVar[frozenset[Modality]] = frozenset({Modality.VIDEO, Modality.TEXT})

    def describe(self, model: LocalModel, modality: Modality) -> Description:
        """D and all that decides a feature of `modality`, from the folder's JSON files."""
        family = self._family(model.path, modality)
        config = complete_config(model.path)
        decides: dict[str, Any] = {"kind": self.kind, "weights": model.digest, "dtype": self.dtype}
        if modality is Modality.TEXT:
            decides |= {"tower": "text", "max_tokens": int(config.text_config.max_position_embeddings)}
            return Description(int(config.projection_dim), decides, longest=decides["max_tokens"])
        decides |= {"preprocess": video_input(model.path).decides(), "pooling": "mean"}
        dim = config.hidden_size if family == _VIDEOMAE else config.projection_dim
        return Description(int(dim), decides, mean_pooled=True, frames=_frames(config))

    def describe_tokens(self, model: LocalModel, modality: Modality) -> Description:
        """Of a text the states before they are pooled and projected; of a video see above, D is the feature's."""
        found = self.describe(model, modality)
        if modality is Modality.VIDEO:
            return found
        width = int(complete_config(model.path).text_config.hidden_size)
        return Description(width, found.decides, longest=found.longest)

    def build(self, model: LocalModel, modality: Modality, threads: int) -> Encoder:
        """Load the weights, and keep those of `modality`."""
        from batchproj import torch_runtime

        family = self._family(model.path, modality)
        torch_runtime.use_threads(threads)
        import transformers

        loader = transformers.VideoMAEModel if family == _VIDEOMAE else transformers.XCLIPModel
        network = torch_runtime.load_pretrained(loader, model.path, self.dtype)
        if modality is Modality.TEXT:
            tower = _XclipText(network)
            tokenizer = load_tokenizer(model.path, int(tower.config.max_position_embeddings))
            return ClipTextEncoder(tower, "text_embeds", tokenizer, always_full=False)
        from batchproj.video_encoder import VideoEncoder

        states = _videomae_states(network) if family == _VIDEOMAE else _xclip_states(network)
        return VideoEncoder(states, video_input(model.path), _frames(network.config), network.dtype)

    def _family(self, folder: Path, modality: Modality) -> str:
        """Model type of the folder; SpaceError if it cannot serve the modality."""
        self.require(modality)
        name = str(read_config(folder).get("model_type"))
        if name not in (_VIDEOMAE, _XCLIP):
            raise SpaceError(f"'{name}' in {folder} is no model of kind video: videomae or xclip was expected")
        if modality is Modality.TEXT and name != _XCLIP:
            raise SpaceError(f"{name} in {folder} has no text tower: xclip has one; or give text an encoder of its own")
        return name


class _XclipText:
    """X-CLIP's text tower with its projection, called as one of CLIP is."""

    def __init__(self, network: Any) -> None:
        self._tower, self._projection = network.text_model, network.text_projection
        self.config, self.dtype = network.config.text_config, network.dtype

    def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
        output = self._tower(input_ids=input_ids)
        embeds = self._projection(output.pooler_output)
        return SimpleNamespace(text_embeds=embeds, last_hidden_state=output.last_hidden_state)


def _videomae_states(network: Any) -> States:
    steps = network.config.num_frames // network.config.tubelet_size

    def forward(pixels_BTCHW: torch.Tensor) -> torch.Tensor:
        states_BND: torch.Tensor = network(pixel_values=pixels_BTCHW).last_hidden_state.float()
        videos, places, width = states_BND.shape
        return states_BND.reshape(videos, steps, places // steps, width).mean(2)

    return forward


def _xclip_states(network: Any) -> States:
    del network.text_model, network.prompts_generator  # half of the weights

    def forward(pixels_BTCHW: torch.Tensor) -> torch.Tensor:
        frames_ND = network.visual_projection(network.vision_model(pixels_BTCHW.flatten(0, 1)).pooler_output)
        videos, frames = pixels_BTCHW.shape[:2]
        states_BTD: torch.Tensor = network.mit(frames_ND.reshape(videos, frames, -1)).last_hidden_state
        return states_BTD.float()

    return forward


def _frames(config: Any) -> int:
    return int(config.num_frames if config.model_type == _VIDEOMAE else config.vision_config.num_frames)
