"""Pictures: every mode and format to the same pixels, torchvision's geometry, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from batchproj.decode.image import decode_image
from batchproj.decode.limits import Limits
from batchproj.errors import ItemFault
from batchproj.media import ImageSpec
from batchproj.schema import Reason

EXACT = ImageSpec(height=24, width=32, resize_px=24)
"""Leaves a 32 x 24 picture as it is, so that pixels can be compared one to one."""
GENERATOR = np.random.default_rng(7)


def smooth(width: int = 32, height: int = 24) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1).astype("u1")


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(data: bytes, spec: ImageSpec = EXACT, limits: Limits | None = None) -> npt.NDArray[np.int16]:
    (segment,) = decode_image(data, spec, limits or Limits())
    assert isinstance(segment.data, np.ndarray)
    assert segment.data.dtype == np.uint8
    assert segment.data.shape == (spec.height, spec.width, 3)
    assert (segment.start, segment.end, segment.text) == (None, None, None)
    return segment.data.astype(np.int16)


def fault(data: bytes, limits: Limits | None = None, spec: ImageSpec = EXACT) -> ItemFault:
    with pytest.raises(ItemFault) as raised:
        decode_image(data, spec, limits or Limits())
    return raised.value


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 4),
        ("JPEG", {"quality": 95}, 4),
        ("JPEG", {"quality": 95, "progressive": True}, 4),
        ("GIF", {}, 12),
    ],
)
def test_formats_give_the_picture_back(format: str, options: dict[str, Any], tolerance: float):
    got = pixels(encoded(Image.fromarray(smooth()), format, **options))
    assert np.abs(got - smooth()).mean() <= tolerance


def test_other_formats_of_pillow_stay_closed():
    assert fault(encoded(Image.fromarray(smooth()), "PPM")).reason is Reason.CORRUPT


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("size", "spec"),
    [
        ((100, 37), (64, 64, 64)),
        ((37, 100), (64, 64, 73)),
        ((141, 97), (63, 64, 64)),
        ((224, 225), (33, 32, 35)),
        ((50, 40), (65, 70, 60)),  # the crop is larger than the resized picture: zeros around it
        ((1, 7), (64, 64, 64)),
    ],
)
def test_crop_equals_torchvision(size: tuple[int, int], spec: tuple[int, int, int], interpolation: Any):
    image = Image.fromarray(GENERATOR.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    height, width, resize_px = spec
    expected = CenterCrop((height, width))(Resize(resize_px, InterpolationMode(interpolation))(image))
    got = pixels(encoded(image, "PNG"), ImageSpec(height, width, resize_px, "crop", interpolation))
    np.testing.assert_array_equal(got, np.asarray(expected))


def test_squash_resizes_both_edges():
    image = Image.fromarray(smooth(90, 30))
    got = pixels(encoded(image, "PNG"), ImageSpec(20, 40, 20, "squash", "bilinear"))
    np.testing.assert_array_equal(got, np.asarray(image.resize((40, 20), Image.Resampling.BILINEAR)))


def test_draft_of_a_large_jpeg_is_close_to_its_full_decode():
    waves = 40 * np.sin(np.mgrid[0:1200, 0:1600].sum(0) / 5)[..., None]
    noisy = smooth(1600, 1200) * 0.6 + 60 + waves + GENERATOR.normal(0, 12, (1200, 1600, 3))
    data = encoded(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), "JPEG", quality=90)
    full = Image.open(io.BytesIO(data)).resize((298, 224), Image.Resampling.BICUBIC)
    expected = np.asarray(full.crop((37, 0, 261, 224)), np.int16)
    assert 0 < np.abs(pixels(data, ImageSpec(224, 224, 224)) - expected).mean() < 1


def test_jpeg_within_four_times_the_target_is_decoded_whole():
    image = Image.fromarray(smooth(32 * 3, 24 * 3))
    data = encoded(image, "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).resize((32, 24), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pixels(data), expected)


ALPHA = np.zeros((24, 32), np.uint8)
ALPHA[:, 16:] = 255
ON_WHITE = np.where(ALPHA[..., None] == 255, smooth(), 255)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_white(format: str):
    image = Image.fromarray(np.dstack([smooth(), ALPHA]))
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(pixels(encoded(image, format, **options)), ON_WHITE)


def test_half_transparent_is_half_white():
    image = Image.new("RGBA", (32, 24), (255, 0, 0, 128))
    np.testing.assert_array_equal(pixels(encoded(image, "PNG"))[0, 0], [255, 127, 127])


def test_grey_with_alpha():
    grey = smooth()[..., 0]
    got = pixels(encoded(Image.merge("LA", (Image.fromarray(grey), Image.fromarray(ALPHA))), "PNG"))
    np.testing.assert_array_equal(got[..., 1], np.where(ALPHA == 255, grey, 255))


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 128])])
def test_palette_with_transparency(transparency: int | bytes):
    image = Image.new("P", (32, 24), 1)
    image.putpalette([9, 9, 9, 0, 0, 200, 0, 0, 0])
    image.paste(0, (0, 0, 16, 24))
    got = pixels(encoded(image, "PNG", transparency=transparency))
    assert got[5, 5].tolist() == [255, 255, 255]
    assert got[5, 25].tolist() == [0, 0, 200]


@pytest.mark.parametrize(("mode", "key"), [("RGB", (10, 20, 30)), ("L", 77)])
def test_one_transparent_colour_of_a_png(mode: str, key: Any):
    image = Image.new(mode, (32, 24), key)
    image.paste(0 if mode == "L" else (0, 0, 0), (16, 0, 32, 24))
    got = pixels(encoded(image, "PNG", transparency=key))
    assert (got[3, 3].tolist(), got[3, 30].tolist()) == ([255] * 3, [0] * 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(format: str, orientation: int):
    upright = Image.fromarray(smooth())
    stored_by = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transpose that EXIF turns back
    stored = upright.transpose(Image.Transpose(stored_by[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 97} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    got = pixels(encoded(stored, format, exif=exif, **options))
    assert np.abs(got - smooth()).mean() < 3


def test_turned_jpeg_is_drafted_for_its_turned_edges():
    stored = Image.fromarray(smooth(160, 640)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    spec = ImageSpec(20, 20, 20)
    got = pixels(encoded(stored, "JPEG", exif=exif, quality=95), spec)
    upright = pixels(encoded(Image.fromarray(smooth(160, 640)), "PNG"), spec)
    assert np.abs(got - upright).mean() < 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")  # pytest's "error" precedes our filter
def test_broken_exif_is_no_fault_of_the_picture():
    data = encoded(Image.fromarray(smooth()), "JPEG", quality=97, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f\xff")
    assert np.abs(pixels(data) - smooth()).mean() < 4


def test_cmyk_jpeg_with_inks_inverted_as_adobe_does():
    got = pixels(encoded(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=97))
    assert np.abs(got - smooth()).mean() < 4


def test_16_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 32 * 24).astype(np.uint16).reshape(24, 32)
    expected = np.rint(ramp / 257)
    for format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(pixels(encoded(Image.fromarray(ramp), format))[..., 0], expected)


def test_32_bit_grey_takes_the_smallest_usual_range():
    ramp = np.linspace(0, 60000, 32 * 24).astype(np.int32).reshape(24, 32)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(ramp), "TIFF"))[..., 2], np.rint(ramp / 257))


def test_float_tiff():
    ramp = np.linspace(0, 1, 32 * 24, dtype=np.float32).reshape(24, 32)
    got = pixels(encoded(Image.fromarray(ramp), "TIFF"))[..., 0]
    np.testing.assert_allclose(got, ramp * 255, atol=0.51)
    ramp[3, 3] = np.nan
    assert fault(encoded(Image.fromarray(ramp), "TIFF")).reason is Reason.NOT_FINITE


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bit_colour_png():
    wide = (smooth().astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    np.testing.assert_array_equal(pixels(png(32, 24, 16, 2, rows)), smooth())


def test_1_bit():
    bits = (np.mgrid[0:24, 0:32].sum(0) % 2).astype(bool)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(bits), "PNG"))[..., 0], bits * 255)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_picture_of_several(format: str):
    first, second = (Image.new("RGB", (32, 24), colour) for colour in ((200, 0, 0), (0, 0, 200)))
    options = {"lossless": True} if format == "WEBP" else {}
    got = pixels(encoded(first, format, save_all=True, append_images=[second], **options))
    np.testing.assert_array_equal(got[12, 16], [200, 0, 0])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_cut_file_is_truncated(format: str, part: float):
    noise = GENERATOR.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format)
    assert fault(data[: int(len(data) * part)]).reason is Reason.TRUNCATED


def test_cut_tiff_that_lost_its_directory_is_truncated():
    data = encoded(Image.fromarray(smooth(128, 96)), "TIFF", compression="tiff_lzw")
    assert fault(data[:-200]).reason is Reason.TRUNCATED


def test_damaged_picture_is_corrupt_with_one_line_of_detail():
    data = bytearray(encoded(Image.fromarray(smooth()), "PNG"))
    data[60:70] = bytes(10)
    refused = fault(bytes(data))
    assert refused.reason is Reason.CORRUPT
    assert refused.detail.isprintable()
    assert 0 < len(refused.detail) <= 200


def claimed_sizes() -> dict[str, bytes]:
    """Tiny files whose headers claim 40,000 x 40,000 pixels (16,384 x 16,384 for WebP)."""
    picture = Image.fromarray(smooth())
    bmp, gif, tiff = (bytearray(encoded(picture, format)) for format in ("BMP", "GIF", "TIFF"))
    bmp[18:26] = struct.pack("<ii", 40000, 40000)
    gif[6:10] = struct.pack("<HH", 40000, 40000)
    for tag in (256, 257):
        entry = tiff.find(struct.pack("<HH", tag, 4)) if struct.pack("<HH", tag, 4) in tiff else -1
        entry = entry if entry >= 0 else tiff.find(struct.pack("<HH", tag, 3))
        tiff[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, 40000)
    lossless = bytearray(encoded(picture, "WEBP", lossless=True))
    lossless[21:25] = struct.pack("<I", 0x3FFF | 0x3FFF << 14)
    lossy = bytearray(encoded(picture, "WEBP"))
    lossy[26:30] = struct.pack("<HH", 0x3FFF, 0x3FFF)
    moving = bytearray(encoded(picture, "WEBP", save_all=True, append_images=[picture.rotate(90)]))
    moving[24:30] = b"\xff\x3f\0\xff\x3f\0"
    jpeg = bytearray(encoded(picture, "JPEG"))
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 40000, 40000)
    sizes = {"png": png(40000, 40000, 8, 2, b"\0"), "bmp": bytes(bmp), "gif": bytes(gif), "tiff": bytes(tiff)}
    sizes |= {"vp8l": bytes(lossless), "vp8": bytes(lossy), "vp8x": bytes(moving), "jpeg": bytes(jpeg)}
    return sizes


@pytest.mark.parametrize("kind", claimed_sizes())
def test_bomb_is_too_large_by_its_header(kind: str):
    refused = fault(claimed_sizes()[kind])
    assert refused.reason is Reason.TOO_LARGE
    assert "40000 x 40000" in refused.detail or "1638" in refused.detail


def test_baseline_jpeg_may_exceed_the_limit_that_others_obey():
    limits = Limits(image_pixels=32 * 24 * 16, jpeg_pixels=320 * 240)
    big = Image.fromarray(smooth(320, 240))
    assert np.abs(pixels(encoded(big, "JPEG", quality=95), limits=limits) - smooth()).mean() < 6
    assert fault(encoded(big, "JPEG", progressive=True), limits).reason is Reason.TOO_LARGE
    assert fault(encoded(big, "PNG"), limits).reason is Reason.TOO_LARGE
    assert fault(encoded(Image.fromarray(smooth(321, 240)), "JPEG"), limits).reason is Reason.TOO_LARGE


def test_the_limit_is_of_the_picture_and_not_of_what_it_is_resized_to():
    tiny = encoded(Image.new("L", (8, 8)), "PNG")
    assert pixels(tiny, ImageSpec(224, 224, 224), Limits(image_pixels=64)).shape == (224, 224, 3)


def test_extreme_ratio_is_refused_before_it_is_resized():
    line = encoded(Image.new("L", (20_000, 1)), "PNG")
    refused = fault(line)
    assert (refused.reason, refused.detail) == (
        Reason.TOO_LARGE,
        "picture of 20000 x 1 pixels, one edge is at most 200 times the other",
    )
    wide = Limits(image_ratio=20_000)
    refused = fault(line, wide, ImageSpec(224, 224, 224))
    assert refused.reason is Reason.TOO_LARGE
    assert "4480000 x 224" in refused.detail
    assert pixels(line, ImageSpec(224, 224, 224, "squash"), wide).max() == 0


def test_a_gif_s_frame_beyond_its_canvas_is_too_large_and_not_corrupt():
    """Pillow lets it grow the canvas as the file is opened, and refuses it by its own limit."""
    gif = encoded(Image.new("P", (8, 8)), "GIF")
    frame = gif.index(struct.pack("<cHHHH", b",", 0, 0, 8, 8)) + 5
    refused = fault(gif[:frame] + struct.pack("<HH", 60_000, 60_000) + gif[frame + 4 :])
    assert refused.reason is Reason.TOO_LARGE


def test_a_detail_says_more_than_a_number():
    """Pillow looks for the tag with the palette."""
    tiff = encoded(Image.fromarray(smooth(8, 8)).quantize(4), "TIFF")
    palette = tiff.index(struct.pack("<HH", 320, 3))
    assert fault(tiff[:palette] + b"\xff\x7f" + tiff[palette + 2 :]).detail == "Pillow: KeyError 320"


def test_a_png_without_its_last_chunk_is_truncated_and_what_lies_behind_that_is_no_matter() -> None:
    picture = Image.fromarray(smooth())
    sound = encoded(picture, "PNG")
    assert sound[-8:-4] == b"IEND"
    for cut in (1, 4, 5, 12, 13):
        assert fault(sound[:-cut]).reason is Reason.TRUNCATED
    assert fault(sound[:-12]).detail == "PNG file ends before its last chunk, IEND"
    expected = pixels(sound)
    described = PngInfo()
    described.add_text("title", "a frog")
    described.add_itxt("comment", "behind the pixels", zip=True)
    for data in (
        sound + b"whatever was written behind it" * 100,
        encoded(picture, "PNG", pnginfo=described),
        encoded(picture, "PNG", save_all=True, append_images=[picture.rotate(180)] * 3, duration=100),
    ):
        np.testing.assert_array_equal(pixels(data), expected)
    text = b"\0\0\0\x04tEXtk\0vv" + struct.pack(">I", zlib.crc32(b"tEXtk\0vv"))  # behind the pixels
    np.testing.assert_array_equal(pixels(sound[:-12] + text + sound[-12:]), expected)
