"""Bytes to one picture of exactly the encoder's size.

H, W rows and columns; C is 3: red, green, blue.

Pillow's plugin classes are called directly rather than through `PIL.Image.open`: the latter warns,
or refuses, above a limit that is one global of the whole process. Ours is checked per call, before
the pixels are allocated.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from batchproj.decode import turns
from batchproj.decode.complete import png_shortfall
from batchproj.decode.faults import one_line, refusals_as_faults
from batchproj.decode.limits import Limits
from batchproj.errors import ItemFault
from batchproj.media import ImageSpec, Segment
from batchproj.schema import Reason

# Pillow remarks on odd metadata line by line; the item is decoded or quarantined, and that says it.
warnings.filterwarnings("ignore", module=r"PIL\.")

_READERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\x89PNG", PngImageFile),
    (b"\xff\xd8\xff", JpegImageFile),
    (b"GIF8", GifImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
)
_DRAFT_REDUNDANCY = 2
"""A JPEG is decoded at 1/2, 1/4 or 1/8 only while it stays this many times what it is resized to.

At 1 the final resize would see pixels already averaged by the DCT's box filter; from 2 on its own
filter does the last halving, and a 1600 px photograph comes out within 1 grey level on average.
"""
_RESIZED_PIXELS = 64_000_000
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_EDGES = frozenset({5, 6, 7, 8})
_WHITE = (255, 255, 255)


def decode_image(data: bytes, spec: ImageSpec, limits: Limits) -> list[Segment]:
    """Decode PNG, JPEG, WebP, GIF, BMP or TIFF to one (height, width, 3) uint8 segment of `spec`.

    Transparency is laid on white, EXIF orientation applied, 16-bit grey scaled to 8, CMYK made
    RGB; of an animation or a multi-page file the first picture counts. `crop` gives the pixels of
    torchvision's `Resize(resize_px)` and `CenterCrop((height, width))` on a PIL image, its zero
    padding included, and `crop_down` the pixels of transformers' processors on Pillow; only a JPEG much larger than
    that is first decoded at a reduced scale.

    Raises ItemFault: TOO_LARGE, TRUNCATED, CORRUPT, NOT_FINITE (float TIFF).
    """
    image = _open(data, limits)
    full = image.size
    check_ratio(full, limits, "picture")
    check_resized(full, spec)
    if isinstance(image, JpegImageFile):
        _reduce(image, spec, limits)
    check_pixels(image.size, limits.image_pixels, "picture")
    turns.wait_if_large(image.size)
    with _refusals_of_pillow():
        image.load()
    if isinstance(image, PngImageFile) and (missing := png_shortfall(data)):
        raise ItemFault(Reason.TRUNCATED, missing)
    turn = 1 if isinstance(image, TiffImageFile) else _orientation(image)  # Pillow turns TIFF itself
    upright = image.transpose(_TURNS[turn]) if turn in _TURNS else image
    return [Segment(fitted(_rgb(upright), _turned(full, turn), spec))]


def fitted(picture: Image.Image, full: tuple[int, int], spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """An RGB picture, of which (width, height) `full` is the true size, as (height, width, 3) uint8 of `spec`."""
    resized = picture.resize(_resized_size(full, spec), Image.Resampling[spec.interpolation.upper()])
    return np.array(_centre(resized, spec))


def check_resized(full: tuple[int, int], spec: ImageSpec) -> None:
    """Raise TOO_LARGE where a picture is so narrow that it would be resized, before the crop, to too many pixels."""
    check_pixels(_resized_size(full, spec), _RESIZED_PIXELS, "resized picture")


def check_ratio(size: tuple[int, int], limits: Limits, what: str) -> None:
    """Raise TOO_LARGE where one edge is too many times the other; CORRUPT without an edge."""
    short, long = sorted(size)
    if short < 1:
        raise ItemFault(Reason.CORRUPT, f"{what} of {size[0]} x {size[1]} pixels")
    if long > limits.image_ratio * short:
        detail = f"{what} of {size[0]} x {size[1]} pixels, one edge is at most {limits.image_ratio:g} times the other"
        raise ItemFault(Reason.TOO_LARGE, detail)


def check_pixels(size: tuple[int, int], limit: int, what: str) -> None:
    """Raise TOO_LARGE above so many pixels."""
    width, height = size
    if width * height > limit:
        detail = f"{what} of {width} x {height} pixels, the limit is {limit} pixels"
        raise ItemFault(Reason.TOO_LARGE, detail)


def _open(data: bytes, limits: Limits) -> ImageFile:
    """Read the header; but for WebP nothing of the size of the picture is allocated here."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _open_webp(data, limits)
    for magic, reader in _READERS:
        if data.startswith(magic):
            if reader is TiffImageFile:
                _check_tiff_directory(data)
            with _refusals_of_pillow():
                return reader(io.BytesIO(data), "")
    raise ItemFault(Reason.CORRUPT, "not a PNG, JPEG, WebP, GIF, BMP or TIFF file")


def _open_webp(data: bytes, limits: Limits) -> ImageFile:
    """WebP: Pillow's decoder allocates the canvas as it opens, so the size is read here first.

    Source: RFC 9649, sections 2.5 to 2.7 (VP8, VP8L and VP8X headers).
    """
    if int.from_bytes(data[4:8], "little") > len(data) - 8:
        raise ItemFault(Reason.TRUNCATED, "WebP file is shorter than its header says")
    kind, body = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        size = (int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1)
    elif kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    else:
        size = (int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF)
    check_pixels(size, limits.image_pixels, "picture")
    turns.wait_if_large(size)
    with _refusals_of_pillow():
        return WebPImageFile(io.BytesIO(data), "")


@contextmanager
def _refusals_of_pillow() -> Iterator[None]:
    """Pillow's refusals as faults; GIF and TIFF it measures by itself, before we can."""
    with refusals_as_faults("Pillow"):
        try:
            yield
        except Image.DecompressionBombError as error:
            raise ItemFault(Reason.TOO_LARGE, one_line(f"Pillow: {error}")) from error


def _check_tiff_directory(data: bytes) -> None:
    """A TIFF says in its header where its directory is, often at the end: a cut file has lost it."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    is_big_tiff = b"+" in data[2:4]
    start = int.from_bytes(data[8:16] if is_big_tiff else data[4:8], order)
    if start >= len(data):
        detail = f"TIFF directory at byte {start}, the file ends at {len(data)}"
        raise ItemFault(Reason.TRUNCATED, detail)


def _reduce(image: JpegImageFile, spec: ImageSpec, limits: Limits) -> None:
    """Ask libjpeg for the smallest scale that leaves `_DRAFT_REDUNDANCY` times the resized size.

    A progressive JPEG holds the coefficients of the whole picture whatever the scale, so the
    wider limit is not for it.
    """
    progressive = bool(image.info.get("progressive"))
    check_pixels(image.size, limits.image_pixels if progressive else limits.jpeg_pixels, "JPEG picture")
    turn = _orientation(image)
    width, height = _turned(_resized_size(_turned(image.size, turn), spec), turn)
    image.draft(None, (_DRAFT_REDUNDANCY * width, _DRAFT_REDUNDANCY * height))


def _resized_size(full: tuple[int, int], spec: ImageSpec) -> tuple[int, int]:
    """(width, height) to resize to, before the crop; rounded as torchvision's `Resize` does."""
    if spec.fit == "squash":
        return spec.width, spec.height
    if spec.fit.startswith("squash"):
        return spec.resize_px, spec.resize_px
    width, height = full
    long = int(spec.resize_px * max(full) / min(full))
    return (spec.resize_px, long) if width <= height else (long, spec.resize_px)


def _centre(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """The middle (height, width) of the picture, zeros where it has none."""

    def begin(have: int, want: int) -> int:
        if want > have:
            return -((want - have) // 2)
        return (have - want) // 2 if spec.fit.endswith("_down") else round((have - want) / 2)

    left, top = begin(image.width, spec.width), begin(image.height, spec.height)
    return image.crop((left, top, left + spec.width, top + spec.height))


def _turned(size: tuple[int, int], turn: int) -> tuple[int, int]:
    return size[::-1] if turn in _SWAPS_EDGES else size


def _orientation(image: ImageFile) -> int:
    """EXIF orientation, 1 to 8; 1 (as stored) where the EXIF block is missing or broken."""
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:  # a broken EXIF block raises anything, and is no fault of the picture
        return 1
    return found if found in _TURNS else 1


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of a loaded picture of any mode, its transparency laid on white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    with refusals_as_faults("Pillow"):
        if not image.has_transparency_data:
            return image.convert("RGB")
        colours = image if image.mode == "RGBA" else image.convert("RGBA")
    on_white = Image.new("RGB", colours.size, _WHITE)
    on_white.paste(colours, mask=colours)
    return on_white


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits (modes I;16, I, F) to L, or LA where one value is transparent.

    I;16 is scaled from its full range. I and F do not say theirs: the smallest of the usual ranges
    (1 for F, 8 bits, 16 bits) that holds all values, else from the least value to the greatest.
    """
    values = np.asarray(image)
    transparent = image.info.get("transparency")
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low + high):
        raise ItemFault(Reason.NOT_FINITE, "NaN or infinity among the pixels")
    usual = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    top = next((top for top in usual if low >= 0 and high <= top), high)
    bottom = min(low, 0.0) if top != high else low
    if values.dtype == np.uint16:  # looked up, which takes an eighth of the memory
        grey = _scaled(np.arange(1 << 16), bottom, top)[values]
    else:
        grey = _scaled(values, bottom, top)
    if transparent is None:
        return Image.fromarray(grey)
    alpha = np.where(values == transparent, np.uint8(0), np.uint8(255))
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))


def _scaled(values: npt.NDArray[Any], bottom: float, top: float) -> npt.NDArray[np.uint8]:
    """`values` from [bottom, top] to 0 .. 255, rounded."""
    shifted = values.astype(np.float32) - np.float32(bottom)
    shifted *= np.float32(255 / ((top - bottom) or 1))
    scaled: npt.NDArray[np.uint8] = np.clip(np.rint(shifted, out=shifted), 0, 255, out=shifted).astype(np.uint8)
    return scaled
