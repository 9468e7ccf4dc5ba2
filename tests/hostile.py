"""Files as strangers send them, each with what must come of it; every one is made here."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile
from films import film, seconds_of
from PIL import Image

RATE = 16_000

Pixels = npt.NDArray[np.uint8]
Bad = dict[str, tuple[bytes, str, str]]
"""By file name: the bytes, the reason of the quarantine, and how its detail begins."""


def drawn(seed: int, width: int = 60, height: int = 44) -> Pixels:
    """A picture (H, W, 3) that no other seed gives."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def saved(image: Image.Image | Pixels, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, level: int = -1) -> bytes:
    """A PNG of these raw rows, whatever the header says of them."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(rows, level)) + chunk(b"IEND", b"")


def zeros_png(width: int, height: int) -> bytes:
    """Black RGB without the memory of it: a few hundred kB for a hundred million pixels."""
    squeezed, row = zlib.compressobj(9), bytes(1 + 3 * width)
    body = b"".join(squeezed.compress(row * 100) for _ in range(height // 100)) + squeezed.flush()
    empty = png(width, height, 8, 2, b"")
    at = empty.index(b"IDAT") - 4
    end = empty.index(b"IEND") - 4
    return (
        empty[:at]
        + struct.pack(">I", len(body))
        + b"IDAT"
        + body
        + struct.pack(">I", zlib.crc32(b"IDAT" + body))
        + (empty[end:])
    )


def tone(seconds: float, seed: int, rate: int = RATE) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(round(seconds * rate)) * 2 * np.pi * rng.uniform(200, 2_000) / rate)
    return (0.3 * wave + rng.normal(0, 0.02, len(wave))).astype(np.float32)


def sound(samples: npt.NDArray[np.float32], format: str, rate: int = RATE, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def short_film(seed: int) -> bytes:
    frames = [drawn(seed, 64, 48)] * 6 + [drawn(seed + 100, 64, 48)] * 6
    return film(frames, options={"preset": "ultrafast"})


def heard_mp4() -> bytes:
    """An MP4 without pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=48_000, layout="mono")
        for begin in range(0, 48_000 - 1024, 1024):
            piece = tone(1, 9, 48_000)[None, begin : begin + 1024]
            frame: Any = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def without_moov(data: bytes) -> bytes:
    """An MP4 as a recorder that lost power leaves it: its index is missing."""
    kept, position = b"", 0
    while position < len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        kept += data[position : position + size] if name != b"moov" else b""
        position += size
    return kept


def archive(kind: str) -> bytes:
    """64 MB of zeros, small."""
    body = bytes(64 << 20)
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
            opened.writestr("a.txt", body)
    elif kind == "gz":
        file.write(gzip.compress(body))
    else:
        with tarfile.open(fileobj=file, mode="w:gz" if kind == "tgz" else "w") as opened:
            info = tarfile.TarInfo("../../x")
            info.size = len(body) if kind == "tgz" else 5
            opened.addfile(info, io.BytesIO(body if kind == "tgz" else b"w1 w2"))
    return file.getvalue()


def odd_pictures() -> dict[str, bytes]:
    """Pictures stored in odd ways, beside `<name>.straight.png`: what each looks like, as plain RGB."""
    seen, files = drawn(50), {}

    def both(name: str, suffix: str, data: bytes, straight: Image.Image | Pixels) -> None:
        files[f"{name}.{suffix}"] = data
        files[f"{name}.straight.png"] = saved(straight, "PNG")

    inks = Image.fromarray(seen).convert("CMYK")
    both("cmyk", "tif", saved(inks, "TIFF"), inks.convert("RGB"))
    data = saved(inks, "JPEG", quality=95)
    both("cmyk-jpeg", "jpg", data, Image.open(io.BytesIO(data)).convert("RGB"))
    wide = (seen.astype(np.uint16) * 257).astype(">u2")
    height, width = seen.shape[:2]
    both("deep", "png", png(width, height, 16, 2, b"".join(b"\0" + row.tobytes() for row in wide)), seen)
    grey = seen[..., 0]
    both("deep-grey", "png", saved(grey.astype(np.uint16) * 257, "PNG"), np.repeat(grey[..., None], 3, 2))
    palette = Image.fromarray(seen).quantize(16)
    shown = np.asarray(palette.convert("RGB")).copy()
    shown[np.asarray(palette) == 0] = 255
    both("palette", "png", saved(palette, "PNG", transparency=0), shown)
    rotated = Image.Exif()
    rotated[0x0112] = 6
    data = saved(seen, "JPEG", quality=95)
    lying = saved(seen, "JPEG", quality=95, exif=rotated)
    upright = Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270)
    both("rotated", "jpg", lying, upright)
    frames = [Image.fromarray(drawn(seed)).quantize(64) for seed in (51, 52)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    both("moving", "gif", data, frames[0].convert("RGB"))
    pages = [Image.fromarray(drawn(seed)) for seed in (53, 54)]
    both("pages", "tif", saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), pages[0])
    both("dot", "png", saved(Image.new("RGB", (1, 1), (9, 200, 30)), "PNG"), Image.new("RGB", (40, 40), (9, 200, 30)))
    return files


def odd_others() -> dict[str, bytes]:
    """Sounds, films and texts that are strange, and fine."""
    one = tone(0.5, 60, 192_000)
    return {
        "named.jpg": saved(drawn(55), "PNG"),
        "picture.txt": saved(drawn(56), "WEBP", lossless=True),
        "eight.wav": sound(np.repeat(one[:, None], 8, 1), "WAV", 192_000, "FLOAT"),
        "eight.straight.wav": sound(one, "WAV", 192_000, "FLOAT"),
        "no-pictures.mp4": heard_mp4(),
        "line.txt": b"w5" * 5_000_000,
        "bidi.txt": "w1 \u202egnp.exe\u202c w2 \u2066w3\u2069".encode(),
        "colour.txt": b"w1 \x1b[31mw2\x1b[0m w3",
    }


def bad_pictures() -> Bad:
    whole, jpeg = saved(drawn(1, 200, 160), "PNG"), saved(drawn(2, 200, 160), "JPEG", quality=95)
    return {
        "empty.png": (b"", "empty", "0 bytes"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated", ""),
        "last-bytes.jpg": (jpeg[:-20], "truncated", ""),
        "half.png": (whole[: len(whole) // 2], "truncated", ""),
        "page.jpg": (b"<!DOCTYPE html><title>404</title>", "wrong_type", "named as image but it is text"),
        "pointer.png": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
            "wrong_type",
            "a Git LFS pointer",
        ),
        "bomb.png": (zeros_png(10_000, 10_000), "too_large", "picture of 10000 x 10000 pixels, the limit is 64000000"),
        "header.png": (png(60_000, 60_000, 8, 2, b"\0"), "too_large", "picture of 60000 x 60000 pixels"),
        "line.png": (saved(Image.new("L", (1, 20_000)), "PNG"), "too_large", "picture of 1 x 20000 pixels, one edge"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported_format", "SVG is not opened"),
        "drawing.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported_format", "PostScript is not opened"),
        "binary.eps": (b"\xc5\xd0\xd3\xc6" + bytes(28), "unsupported_format", "EPS is not opened"),
        "layers.psd": (b"8BPS\0\1" + bytes(20), "unsupported_format", "image/vnd.adobe.photoshop is not opened"),
        "stars.fits": (b"SIMPLE  =                    T" + bytes(50), "unsupported_format", "FITS is not opened"),
        "noise.png": (np.random.default_rng(0).bytes(500), "corrupt", "named as image, but no image format begins"),
    }


def flac_header() -> bytes:
    """A FLAC without a frame (16 bits, mono), as encoders leave that get nothing; libsndfile writes no byte."""
    told = (RATE << 44) | (15 << 36)
    return b"fLaC\x80\0\0\x22" + struct.pack(">HH", 4_096, 4_096) + bytes(6) + struct.pack(">Q", told) + bytes(16)


def bad_sounds() -> Bad:
    samples = tone(1, 3)
    wav, ogg, mp3 = (sound(samples, format) for format in ("WAV", "OGG", "MP3"))
    claims = bytearray(wav)
    claims[4:8] = claims[40:44] = struct.pack("<I", 3 * 3600 * RATE * 2)
    hole = samples.copy()
    hole[500] = np.nan
    quiet = np.zeros(RATE, np.float32)
    return {
        "half.wav": (wav[: len(wav) // 2], "truncated", "WAV data of 32000 bytes, 15978 are there"),
        "half.ogg": (ogg[: len(ogg) // 2], "truncated", ""),
        "half.mp3": (mp3[: len(mp3) // 2], "truncated", "MPEG sound of "),
        "claims.wav": (bytes(claims), "truncated", "WAV data of 345600000 bytes, 32000 are there"),
        "nan.wav": (sound(hole, "WAV", subtype="FLOAT"), "not_finite", "NaN or infinity among the samples"),
        "none.wav": (sound(samples[:0], "WAV"), "no_samples", "0 samples at 16000 Hz"),
        "none.flac": (flac_header(), "no_samples", "0 samples at 16000 Hz"),
        "quiet.flac": (sound(quiet, "FLAC"), "silent", "1.0 s of sound, all of it below -50 dBFS"),
    }


def bad_films() -> Bad:
    whole = film(seconds_of(1, 10), options={"preset": "ultrafast"})
    playlist = b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXTINF:1,\nfile:///etc/passwd\n"
    return {
        "half.mp4": (whole[: len(whole) // 2], "truncated", "MP4 box "),
        "no-moov.mp4": (without_moov(whole), "corrupt", "PyAV: "),
        "playlist.mp4": (playlist, "unsupported_format", "a playlist is not opened"),
        "playlist.m3u8": (playlist, "unsupported_format", "a playlist is not opened"),
        "concat.mp4": (b"ffconcat version 1.0\nfile /etc/passwd\n", "unsupported_format", "a playlist is not opened"),
    }


def bad_texts() -> Bad:
    return {
        "blank.txt": (b" \n\t \n", "blank_text", ""),
        "latin.txt": (b"w1 " * 1000 + b"caf\xe9 w2", "invalid_utf8", "byte 0xe9 at offset 3003"),
        "wide.txt": ("w1 w2".encode("utf-16"), "invalid_utf8", "byte offset 0: UTF-16"),
        "nul.txt": (b"w1\0w2", "corrupt", "NUL character at byte offset 2"),
        "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\n", "wrong_type", "a Git LFS pointer"),
        "text.txt.gz": (archive("gz"), "unsupported_format", "application/gzip is not opened"),
        "bomb.txt": (archive("gz"), "unsupported_format", "application/gzip is not opened"),
        "texts.zip": (archive("zip"), "unsupported_format", "application/zip is not opened"),
        "texts.tgz": (archive("tgz"), "unsupported_format", "application/gzip is not opened"),
        "member.tar": (archive("tar"), "unsupported_format", "application/x-tar is not opened"),
        "a\x1b[31mb\nc.bin": (b"\x9d\xfe\xfd\xfc", "unknown_type", ""),
        "=cmd|'x'!A0.txt": (b"", "empty", ""),
        "b\u202egnp.txt": (b"", "empty", ""),
    }


THEMES: list[Callable[[], Bad]] = [bad_pictures, bad_sounds, bad_films, bad_texts]


def all_bad() -> Bad:
    """Every one of them, under different names."""
    return {name: each for theme in THEMES for name, each in theme().items()}
