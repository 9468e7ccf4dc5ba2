"""The ceiling: what is known to pay on this machine, by hand and with no framework.

all       bf16 where the CPU has instructions for it, else fp32; memory that a step has given back is kept for the next,
          by the environment it starts with
texts     pooled in fp32; the whole input sorted by length (of remote objects 2,048, the next ones read
          meanwhile), batches of so many tokens, a core each; the steps traced, the weights prepacked, lengths filled up
          to multiples of 16 where that adds little, else mostly keys and values alone
images    fp32 in the first stage, batch norms folded, channels last, activations and uneven padding within the
          convolutions; JPEG decoded at a reduced scale; decoding in threads beside the model; uint8 until the model;
          batches side by side, a core each; the steps traced
sounds    Whisper at a clip's own length; log-mel of the real samples; sorted by length; decoding beside the model;
          batches side by side, a core each
cached    one matrix product over the features, file by file

Weights are prepacked, steps branched and convolutions fused by the modules that batchproj has for it: a gain in those
moves both. It knows all its input beforehand, holds all features in memory, and what it cannot use ends it: a pipeline
that comes close to it gives up nothing for being one.
"""

from __future__ import annotations

import io
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from batchproj.bench import models
from batchproj.bench.contender import Job, Stopwatch, main, write_features, write_outcome
from batchproj.bench.reading import names, read, read_many
from batchproj.bench.workloads import segment_ids
from batchproj.fused_convolutions import fuse
from batchproj.prepacked_linear import prepack
from batchproj.recorded_steps import Steps, branching
from batchproj.schema import Modality
from batchproj.torch_runtime import torch_dtype

FORWARD_TOKENS = 512
"""Tokens in a batch of texts: more leave the cache of a core, fewer do not fill it."""
REMOTE_WINDOW = 2_048
"""Objects read and sorted at once, while the ones before are encoded."""
FILLED = 1.07
"""A batch that is longer by no more than this is filled up."""
FORWARD_IMAGES = 8
FORWARD_MEL_FRAMES = 800

_Clip = tuple[str, models.Array, models.Array]
"""Segment, log-mel and samples."""

T = TypeVar("T")
U = TypeVar("U")


def run(job: Job) -> None:
    if job.collection is not None:
        _cached(job)
    else:
        {Modality.TEXT: _texts, Modality.IMAGE: _images, Modality.AUDIO: _sounds}[job.modality](job)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[U], T], inputs: Iterable[U], depth: int) -> Iterator[T]:
    """What `work` makes of each, in order, never more than `depth` ahead."""
    waiting: deque[Future[T]] = deque()
    for each in inputs:
        waiting.append(pool.submit(work, each))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _lanes(cores: int) -> ThreadPoolExecutor:
    """Threads that compute with one core each: batches that share cores wait for one another at every step."""

    def alone() -> None:
        torch.get_num_threads()  # at its first use a thread takes the process's number, whatever it has set
        torch.set_num_threads(1)

    torch.set_num_threads(1)
    return ThreadPoolExecutor(cores, initializer=alone)


def _texts(job: Job) -> None:
    _register()
    tokenizer, model = models.text_model(
        dtype=torch_dtype("bf16"), add_pooling_layer=False, attn_implementation=_FILLED_ATTENTION
    )
    fast = tokenizer.backend_tokenizer
    fast.enable_truncation(models.MAX_TOKENS)
    fast.no_padding()
    prepack(model)
    states_of = _traced(
        Steps(lambda ids_BL, mask_BL: model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state, model),
        *_filled([[101, 102], [101, 2001, 102]]),
    )
    ready, watch = time.time(), Stopwatch()
    ids = names(job.source)
    real = padded = 0
    features = []

    def tokens(some: list[str]) -> list[list[int]]:
        texts = [data.decode() for data in read_many(job.source, some)]
        return [encoding.ids for encoding in fast.encode_batch_fast(texts)]

    def forward(own: models.Array, rows: list[list[int]], batch: list[int]) -> int:
        ids_BL, mask_BL = _filled([rows[index] for index in batch])
        with torch.inference_mode():
            own[batch] = models.mean_pooled(states_of(ids_BL, mask_BL), mask_BL).numpy()
        return int(ids_BL.numel())

    size = REMOTE_WINDOW if job.source.startswith("s3://") else len(ids)
    windows = [ids[start : start + size] for start in range(0, len(ids), size)]
    with ThreadPoolExecutor(1) as pool, _lanes(job.cores) as lanes:
        for rows in _ahead(pool, tokens, windows, 1):
            watch.lap("decode")
            own = np.empty((len(rows), model.config.hidden_size), np.float32)
            batches = _token_batches(sorted(range(len(rows)), key=lambda index: len(rows[index])), rows)
            padded += sum(lanes.map(partial(forward, own, rows), batches))
            real += sum(map(len, rows))
            features.append(own)
            watch.lap("model")
    write_features(job, ids, np.concatenate(features))
    watch.lap("write")
    write_outcome(job, watch.outcome(ready, real, padded))


def _traced(steps: Steps, *example: Any) -> Callable[..., Any]:
    """Without Python between the steps, for which threads would wait; the parity gate sees what comes of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.inference_mode():
            traced = torch.jit.trace(steps, example, check_trace=False)  # type: ignore[no-untyped-call]

    def run(*inputs: Any) -> Any:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return traced(*inputs)

    return run


def _filled(rows: list[list[int]]) -> tuple[Any, Any]:
    """Ids and mask (B, L); the padding's id is BERT's, 0."""
    longest = len(rows[-1])
    vectors = -(-longest // 16) * 16  # torch's softmax takes what is left over of 16 keys one by one
    ids_BL = np.zeros((len(rows), vectors if vectors <= FILLED * longest else longest), np.int64)
    for number, row in enumerate(rows):
        ids_BL[number, : len(row)] = row
    return torch.from_numpy(ids_BL), torch.from_numpy((ids_BL > 0).astype(np.int64))


@branching
def _within(
    query_BHLD: torch.Tensor, key_BHLD: torch.Tensor, value_BHLD: torch.Tensor, mask_B1LL: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention with keys and values filled up to whole vectors of 16, unless hardly any were left over.

    By a copy: behind the last text of a batch there is nothing that a view could reach into, as `packed_texts` has it.
    """
    filling = (16 - key_BHLD.size(2) % 16) % 16
    if 0 < filling < 14:  # as in batchproj's own, `packed_texts`: torch's softmax takes the rest one by one
        key_BHLD = torch.constant_pad_nd(key_BHLD, [0, 0, 0, filling])
        value_BHLD = torch.constant_pad_nd(value_BHLD, [0, 0, 0, filling])
        mask_B1LL = torch.constant_pad_nd(mask_B1LL, [0, filling], -math.inf)
    return torch.nn.functional.scaled_dot_product_attention(
        query_BHLD, key_BHLD, value_BHLD, mask_B1LL, 0.0, False, scale=scale
    )


_FILLED_ATTENTION = "bare-best-filled"


def _attention(
    _module: Any, query_BHLD: Any, key_BHLD: Any, value_BHLD: Any, mask_B1LL: Any, scaling: float, **_: Any
) -> tuple[Any, None]:
    """As transformers asks for it, with a mask of booleans."""
    added_B1LL = torch.zeros(mask_B1LL.shape, dtype=query_BHLD.dtype).masked_fill(~mask_B1LL, -math.inf)
    return _within(query_BHLD, key_BHLD, value_BHLD, added_B1LL, scaling).transpose(1, 2), None


def _register() -> None:
    """Tell transformers of this attention, and that it always gets a mask."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_FILLED_ATTENTION, _attention)
    AttentionMaskInterface.register(
        _FILLED_ATTENTION,
        lambda *told, **options: sdpa_mask(*told, **{**options, "allow_is_bidirectional_skip": False}),
    )


def _token_batches(order: list[int], rows: list[list[int]]) -> Iterator[list[int]]:
    """Rows of `order`, by length, in batches of at most FORWARD_TOKENS, padding included."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * len(rows[index]) > FORWARD_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _images(job: Job) -> None:
    network = models.image_network()
    config = network.pretrained_cfg
    edge = config["input_size"][1]
    resized = int(edge / config["crop_pct"])
    _prepare(network)
    mean, std = (torch.tensor(config[key]).repeat(edge) * 255 for key in ("mean", "std"))
    factor, shift = 1 / std, -mean / std
    ids = names(job.source)

    def steps(pixels_BHWC: torch.Tensor) -> torch.Tensor:
        rows_BHR = torch.addcmul(shift, pixels_BHWC.flatten(2).float(), factor)  # a whole row's numbers at once
        features_BD: torch.Tensor = network(rows_BHR.view(pixels_BHWC.shape).permute(0, 3, 1, 2))
        return features_BD

    features_of = _traced(Steps(steps, network), torch.zeros(FORWARD_IMAGES, edge, edge, 3, dtype=torch.uint8))
    ready, watch = time.time(), Stopwatch()

    def forward(batch: list[npt.NDArray[np.uint8]]) -> models.Array:
        with torch.inference_mode():
            return np.asarray(features_of(torch.from_numpy(np.stack(batch))).numpy())

    def batches(pictures: Iterator[npt.NDArray[np.uint8]]) -> Iterator[list[npt.NDArray[np.uint8]]]:
        while batch := list(islice(pictures, FORWARD_IMAGES)):
            watch.lap("decode")
            yield batch

    with ThreadPoolExecutor(job.cores) as pool, _lanes(job.cores) as lanes:
        pictures = _ahead(pool, lambda name: _decode(read(job.source, name), resized, edge), ids, 4 * FORWARD_IMAGES)
        features = list(_ahead(lanes, forward, batches(pictures), 2 * job.cores))
    watch.lap("model")
    write_features(job, ids, np.concatenate(features))
    watch.lap("write")
    write_outcome(job, watch.outcome(ready))


def _decode(data: bytes, resized: int, edge: int) -> npt.NDArray[np.uint8]:
    """Shortest edge to `resized`, then the centre; a JPEG is decoded at 1/2, 1/4, 1/8 while twice that is left."""
    from PIL import Image

    picture: Any = Image.open(io.BytesIO(data))
    scale = resized / min(picture.size)
    width, height = (max(resized, int(side * scale)) for side in picture.size)
    picture.draft("RGB", (2 * width, 2 * height))
    picture = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - edge) / 2), round((height - edge) / 2)
    return np.asarray(picture.crop((left, top, left + edge, top + edge)))


def _prepare(network: Any) -> None:
    """bf16, where there is, from the second stage on, norms folded while in fp32: plain bf16 loses too much here."""
    _fold(network)
    network.to(memory_format=torch.channels_last)
    dtype = torch_dtype("bf16")
    for part in (*network.blocks[1:], network.conv_head, network.bn2):
        part.to(dtype)
    fuse(network)
    network.blocks[0].register_forward_hook(lambda _part, _inputs, output: output.to(dtype))
    network.bn2.register_forward_hook(lambda _part, _inputs, output: output.float())


def _fold(module: Any) -> None:
    """Batch norms into the convolutions before them; a copy of the encoder's, whose changes must show."""
    from timm.layers import BatchNormAct2d
    from torch.nn import Conv2d
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    children = list(module.named_children())
    for (name, convolution), (norm_name, norm) in pairwise(children):
        if isinstance(convolution, Conv2d) and isinstance(norm, BatchNormAct2d):
            setattr(module, name, fuse_conv_bn_eval(convolution, norm))
            setattr(module, norm_name, norm.act)
    for _, child in children:
        _fold(child)


def _sounds(job: Job) -> None:
    import soundfile

    from batchproj.log_mel import LogMel

    torch.set_num_threads(1)  # a spectrogram in each decoding thread
    model, log_mel = models.whisper(1, calls=job.cores), LogMel(80)
    segments = job.segments
    ready, watch = time.time(), Stopwatch()
    ids = sorted(names(job.source), key=lambda name: soundfile.info(Path(job.source, name)).frames)
    waiting: dict[int, list[_Clip]] = {}

    def decode(name: str) -> list[_Clip]:
        windows = models.samples(read(job.source, name))
        own = segment_ids(name, segments[name])
        return [
            (one, log_mel(window, models.real_mel_frames(window)), window)
            for one, window in zip(own, windows, strict=True)
        ]

    def forward(batch: list[_Clip]) -> tuple[list[str], models.Array]:
        frames_BTD = models.whisper_frames(model, np.stack([mel for _, mel, _ in batch]))
        pooled = models.mean_and_spread(frames_BTD, [window for _, _, window in batch])
        return [name for name, _, _ in batch], pooled

    def batches(decoded: Iterator[list[_Clip]]) -> Iterator[list[_Clip]]:
        for clip in chain.from_iterable(decoded):
            length = clip[1].shape[1]
            waiting.setdefault(length, []).append(clip)
            if (len(waiting[length]) + 1) * length > FORWARD_MEL_FRAMES:
                watch.lap("decode")
                yield waiting.pop(length)
        yield from waiting.values()

    with ThreadPoolExecutor(job.cores) as pool, ThreadPoolExecutor(job.cores) as lanes:
        done = list(_ahead(lanes, forward, batches(_ahead(pool, decode, ids, 4 * job.cores)), 2 * job.cores))
    watch.lap("model")
    write_features(job, [name for names, _ in done for name in names], np.concatenate([found for _, found in done]))
    watch.lap("write")
    write_outcome(job, watch.outcome(ready))


def _cached(job: Job) -> None:
    """A linear projection of every cached feature, straight from the collection's Parquet files."""
    import pyarrow.parquet as pq
    from safetensors.numpy import load_file

    assert job.collection is not None, job
    assert job.space is not None, job
    weights = load_file(job.space.parent / "text.safetensors")
    # (x - mean) / scale is folded into the matrix
    matrix = weights["map.weight"] / weights["scale"]
    bias = weights["map.bias"] - matrix @ weights["mean"]
    ready, watch = time.time(), Stopwatch()
    ids: list[str] = []
    vectors = []
    for file in sorted(job.collection.glob("features/*/*.parquet")):
        table = pq.read_table(file, columns=["id", "feature"])
        column = table["feature"].combine_chunks()
        features_ND = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)
        ids += table["id"].to_pylist()
        watch.lap("decode")
        projected_NK = features_ND @ matrix.T + bias
        vectors.append(projected_NK / np.linalg.norm(projected_NK, axis=1, keepdims=True))
        watch.lap("model")
    write_features(job, ids, np.concatenate(vectors))
    watch.lap("write")
    write_outcome(job, watch.outcome(ready))


if __name__ == "__main__":
    main(run)
