"""Video: which frames, of which seconds, which way up; what is refused; how much memory it takes."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from films import LEVELS, Matrix, Pixels, displayed_by, film, only_sound, seconds_of
from PIL import Image
from whole_item import decode

from batchproj.decode.container import open_container
from batchproj.decode.film import Film
from batchproj.decode.image import decode_image
from batchproj.decode.item import PIECE, decode_pieces
from batchproj.decode.limits import Limits
from batchproj.decode.video import decode_video
from batchproj.errors import ItemFault
from batchproj.media import ImageSpec, Segment, VideoSpec
from batchproj.schema import Modality, Reason
from batchproj.segments import VideoSegments

IMAGE = ImageSpec(32, 32, 32)


def cut(data: bytes, image: ImageSpec = IMAGE, limits: Limits | None = None, **settings: Any) -> list[Segment]:
    return list(decode_video(data, VideoSpec(image, VideoSegments(**settings)), limits or Limits()))


def seconds_shown(segment: Segment) -> list[int]:
    """The second each frame was taken from, by its grey."""
    greys = np.asarray(segment.data)[:, 16, 16, 0].astype(int)
    return [int(np.abs(np.array(LEVELS) - grey).argmin()) for grey in greys]


def spans(segments: list[Segment]) -> list[tuple[float, float]]:
    assert all(segment.start is not None and segment.end is not None for segment in segments)
    return [(round(segment.start or 0, 3), round(segment.end or 0, 3)) for segment in segments]


def fault(data: bytes, **limits: Any) -> ItemFault:
    with pytest.raises(ItemFault) as raised:
        cut(data, limits=Limits(**limits))
    return raised.value


@pytest.mark.parametrize(
    ("format", "codec"),
    [
        ("mp4", "libx264"),  # frames out of order
        ("mov", "mpeg4"),
        ("webm", "libvpx-vp9"),
        ("webm", "libvpx"),
        ("mp4", "libsvtav1"),
        ("matroska", "ffv1"),
        ("avi", "mpeg4"),
        ("mpegts", "mpeg2video"),  # begins at another time than 0
        ("mpeg", "mpeg2video"),
        ("flv", "flv1"),
        ("asf", "msmpeg4v3"),
    ],
)
@pytest.mark.parametrize("gop", [5, 250])
def test_frames_are_those_on_show_at_the_middles_of_equal_shares(format: str, codec: str, gop: int) -> None:
    data = film(seconds_of(7, 25), fps=25, format=format, codec=codec, gop=gop)
    found = cut(data, seconds=3, frames=6)
    assert spans(found) == [(0, 3), (3, 6), (6, 7)]
    assert [np.asarray(segment.data).shape for segment in found] == [(6, 32, 32, 3)] * 3
    assert all(np.asarray(segment.data).dtype == np.uint8 for segment in found)
    assert [seconds_shown(segment) for segment in found] == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5], [6] * 6]


def numbered(count: int, width: int = 256) -> Iterator[Pixels]:
    """Frames that say which they are: a bright column of 2 px as far right as their number."""
    for number in range(count):
        pixels = np.zeros((16, width, 3), np.uint8)
        pixels[:, 2 * number : 2 * number + 2] = 255
        yield pixels


@pytest.mark.parametrize("gop", [1, 7, 300])
@pytest.mark.parametrize("open_gop", ["0", "1"])
def test_passing_over_packets_changes_no_frame(gop: int, open_gop: str) -> None:
    options = {"bf": "3", "x264-params": f"open-gop={open_gop}:scenecut=0"}
    video = Film(film(numbered(120), fps=25, gop=gop, options=options), Limits())
    every = {round(time * 25): frame.to_ndarray(format="rgb24") for time, frame in video.frames()}
    assert sorted(every) == list(range(120))
    for step in (0.013, 0.31, 1.7):
        times = np.arange(0.001, 4.79, step)
        for time, frame in zip(times, video.frames_at(times), strict=True):
            np.testing.assert_array_equal(frame.to_ndarray(format="rgb24"), every[int(time * 25)])
            assert every[int(time * 25)].mean((0, 2)).argmax() // 2 == int(time * 25)


class Counted:
    """A stream that counts the packets it decodes."""

    def __init__(self, stream: Any) -> None:
        self.codec_context, self._decode, self.packets = stream.codec_context, stream.decode, 0

    def decode(self, packet: av.Packet) -> Any:
        self.packets += packet.size > 0
        return self._decode(packet)


def test_only_what_is_needed_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    video = Film(film(seconds_of(8, 25), fps=25, gop=25, options={"bf": "0"}), Limits())
    opened, counted = video._opened, []

    @contextlib.contextmanager
    def counting() -> Iterator[tuple[Any, Any]]:
        with opened() as (container, stream):
            counted.append(Counted(stream))
            # PyAV asks for a stream of its own
            yield SimpleNamespace(demux=lambda _: container.demux(stream)), counted[0]

    monkeypatch.setattr(video, "_opened", counting)
    assert [round(frame.time, 2) for frame in video.frames_at([0.1, 0.15, 4.1, 7.9])] == [0.08, 0.12, 4.08, 7.88]
    # up to the frame after the wanted one: 5 of the first second's 25, 4 of the fifth, 24 of the eighth
    assert counted[0].packets == 5 + 4 + 24


@pytest.mark.parametrize(
    ("format", "codec", "first", "cut_off"),
    [
        ("mp4", "libx264", 7, 0),
        ("mpegts", "mpeg2video", -15, 0),
        ("mp4", "libx264", -15, 1.5),  # what comes before 0 is not to be shown: an edit list
        ("matroska", "libx264", -15, 1.5),  # and here it has no time at all
    ],
)
def test_a_video_begins_with_the_first_frame_to_be_shown(format: str, codec: str, first: int, cut_off: float) -> None:
    options: dict[str, Any] = {"options": {"bf": "0"}, "container": {"avoid_negative_ts": "disabled"}}
    video = Film(film(seconds_of(5, 10), first=first, format=format, codec=codec, gop=10, **options), Limits())
    assert video.seconds == pytest.approx(5 - cut_off)
    times = np.arange(0.25, 5 - cut_off, 0.5)
    shown = [frame.to_ndarray(format="gray").mean() for frame in video.frames_at(times)]
    np.testing.assert_allclose(shown, [LEVELS[int(time + cut_off)] for time in times], atol=6)


def test_a_short_last_segment_shares_with_the_one_before_it() -> None:
    assert spans(cut(film(seconds_of(6.5, 10)), seconds=3)) == [(0, 3), (3, 4.75), (4.75, 6.5)]
    assert spans(cut(film(seconds_of(6.5, 10)), seconds=3, min_seconds=0.2)) == [(0, 3), (3, 6), (6, 6.5)]
    assert spans(cut(film(seconds_of(6, 10)), seconds=3)) == [(0, 3), (3, 6)]
    assert spans(cut(film(seconds_of(0.5, 10)))) == [(0, 0.5)]


def test_scenes() -> None:
    data = film(seconds_of(7, 25), fps=25, gop=250)
    found = cut(data, at="scene", frames=3)
    assert spans(found) == list(itertools.pairwise(range(8)))
    assert [seconds_shown(segment) for segment in found] == [[second] * 3 for second in range(7)]
    assert spans(cut(data, at="scene", min_seconds=2)) == [(0, 2), (2, 4), (4, 7)]
    assert spans(cut(data, at="scene", cut=150)) == [(0, 1), (1, 7)]  # 20 to 220 is the greatest step
    assert spans(cut(data, at="scene", cut=150, seconds=4)) == [(0, 1), (1, 4), (4, 7)]


def test_what_moves_or_fades_is_one_scene() -> None:
    fading = (np.full((48, 64, 3), 4 * number, np.uint8) for number in range(60))
    assert spans(cut(film(fading, fps=20), at="scene")) == [(0, 3)]
    assert spans(cut(film(numbered(60, 128), fps=20), at="scene")) == [(0, 3)]


def test_one_frame_is_a_video_too() -> None:
    (only,) = cut(film(seconds_of(0.1, 10)), frames=4)
    assert seconds_shown(only) == [0] * 4
    assert (only.start, only.end) == (0, pytest.approx(0.1))


def test_rare_frames_are_taken_several_times() -> None:
    (only,) = cut(film(seconds_of(3, 1), fps=1), frames=9)
    assert seconds_shown(only) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


QUARTERS = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((32, 32), np.uint8))[..., None].repeat(3, -1)
"""Grey of the corners: 0, 80, 160, 240, from left to right and from top to bottom."""


@pytest.mark.parametrize(
    ("matrix", "corners"),
    [
        ((1, 0, 0, 1), [0, 80, 160, 240]),
        ((-1, 0, 0, 1), [80, 0, 240, 160]),
        ((1, 0, 0, -1), [160, 240, 0, 80]),
        ((-1, 0, 0, -1), [240, 160, 80, 0]),
        ((0, 1, -1, 0), [160, 0, 240, 80]),  # as a telephone held upright records: a quarter clockwise
        ((0, -1, 1, 0), [80, 240, 0, 160]),
        ((0, 1, 1, 0), [0, 160, 80, 240]),
        ((0, -1, -1, 0), [240, 80, 160, 0]),
    ],
)
def test_frames_are_turned_as_the_container_says(matrix: Matrix, corners: list[int]) -> None:
    (only,) = cut(displayed_by(film([QUARTERS] * 5), matrix), frames=1)
    picture = np.asarray(only.data)[0, :, :, 0].astype(int)
    found = [picture[8, 8], picture[8, 24], picture[24, 8], picture[24, 24]]
    np.testing.assert_allclose(found, corners, atol=4)


def test_frames_are_given_back_at_once_and_not_by_the_garbage_collector() -> None:
    """A frame of 8K is 50 MB."""
    gc.collect()
    gc.disable()
    try:
        assert (
            sum(len(np.asarray(segment.data)) for segment in cut(film(seconds_of(3, 25), fps=25), frames=75, seconds=3))
            == 75
        )
        kept = sum(type(each) is av.VideoFrame for each in gc.get_objects())
    finally:
        gc.enable()
    assert kept <= 1


def test_a_frame_is_resized_as_an_image_is() -> None:
    y, x = np.mgrid[0:240, 0:320]
    pixels = np.stack([x % 256, y, (x + y) % 256], -1).astype(np.uint8)
    data = film([pixels] * 3, codec="ffv1", format="matroska")
    with av.open(io.BytesIO(data), format="matroska") as container:
        exact = next(container.decode(video=0)).to_ndarray(format="rgb24")
    png = io.BytesIO()
    Image.fromarray(exact).save(png, "PNG")
    for spec in (ImageSpec(64, 64, 72), ImageSpec(50, 70, 50, "squash", "bilinear")):
        (still,) = decode_image(png.getvalue(), spec, Limits())
        (moving,) = cut(data, spec, frames=2)
        np.testing.assert_array_equal(moving.data, np.stack([still.data] * 2))


def test_pixels_that_are_not_square() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 24:40] = 255  # a quarter of the width; twice as wide, and then cut to a square, a half
    (only,) = cut(film([pixels] * 3, aspect=2), frames=1)
    assert np.asarray(only.data)[0].mean() == pytest.approx(127, abs=6)


def test_a_cover_picture_is_no_video() -> None:
    data = film(seconds_of(2, 10), sound=True)
    assert spans(cut(data)) == [(0, 2)]


@pytest.mark.parametrize("container", [{}, {"movflags": "frag_keyframe+empty_moov"}])
def test_a_cut_mp4_is_truncated(container: dict[str, str]) -> None:
    data = film(seconds_of(6, 10), container=container)
    for size in (len(data) // 3, len(data) - 1000, len(data) - 10):
        assert fault(data[:size]).reason is Reason.TRUNCATED


@pytest.mark.parametrize(("format", "codec"), [("webm", "libvpx-vp9"), ("matroska", "mpeg4"), ("avi", "mpeg4")])
def test_cut_files_whose_header_states_their_length(format: str, codec: str) -> None:
    data = film(seconds_of(6, 10), format=format, codec=codec)
    assert fault(data[: len(data) // 2]).reason is Reason.TRUNCATED
    assert fault(data[:-1]).reason is Reason.TRUNCATED


def test_a_live_webm_states_no_length_and_is_taken() -> None:
    data = film(seconds_of(3, 10), format="webm", codec="libvpx-vp9", container={"live": "1"})
    assert spans(cut(data)) == [(0, 3)]


def test_limits_are_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = film(seconds_of(4, 10))
    monkeypatch.setattr("batchproj.decode.film.Film.frames_at", None)
    large = fault(data, video_pixels=64 * 48 - 1)
    assert (large.reason, large.detail) == (
        Reason.TOO_LARGE,
        "video frame of 64 x 48 pixels, the limit is 3071 pixels",
    )
    long = fault(data, video_s=3)
    assert (long.reason, long.detail) == (Reason.TOO_LARGE, "4 s of video, the limit is 3 s")


def test_frames_larger_than_the_header_says_are_not_decoded() -> None:
    small, large = (
        film(seconds_of(1, 10, size), codec="mpeg2video", format="mpegts") for size in ((64, 48), (640, 480))
    )
    assert fault(small + large, video_pixels=64 * 48).reason is Reason.CORRUPT


def test_a_narrow_frame_is_not_made_long() -> None:
    data = film([np.zeros((16, 2048, 3), np.uint8)] * 3)
    assert fault(data, image_ratio=100).detail.startswith(
        "video frame of 2048 x 16 pixels, one edge is at most 100 times"
    )


def test_what_holds_no_video_is_refused() -> None:
    refused = fault(only_sound())
    assert (refused.reason, refused.detail) == (Reason.UNSUPPORTED_FORMAT, "mov file without a video stream")
    for data in (
        b"\0\0\x01\xb3" + bytes(100),
        b"#EXTM3U\nhttp://localhost/a.ts\n",
        b"ffconcat version 1.0\nfile a.mp4\n",
    ):
        assert fault(data).reason is Reason.UNSUPPORTED_FORMAT


def test_an_unknown_codec_is_not_supported() -> None:
    data = film(seconds_of(1, 10)).replace(b"avc1", b"zzzz")
    assert fault(data).reason is Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("name", ["concat", "hls", "dash"])
def test_nothing_is_opened_beside_the_bytes(name: str, tmp_path: Path) -> None:
    """No demuxer is given bytes that name other files; and if one were, it would not get them."""
    other = tmp_path / "other.ts"
    other.write_bytes(film(seconds_of(1, 10), format="mpegts", codec="mpeg2video"))
    lists = {
        "concat": f"ffconcat version 1.0\nfile '{other}'\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
        "dash": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet contentType="video"><Representation '
        f'id="0" bandwidth="1"><BaseURL>{other}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    }
    data = lists[name].encode()
    assert fault(data).reason is Reason.UNSUPPORTED_FORMAT
    with pytest.raises((av.FFmpegError, PermissionError)), open_container(data, name) as container:
        next(container.decode(video=0))


def test_pieces_are_the_whole() -> None:
    spec = VideoSpec(ImageSpec(224, 224, 224), VideoSegments(seconds=0.5, frames=8))
    data = film(seconds_of(8, 10))
    made = list(decode_pieces(data, Modality.VIDEO, spec, Limits()))
    assert [piece.last for piece in made] == [False, False, True]
    pieces = [piece.segments for piece in made]
    assert [len(piece) for piece in pieces] == [7, 7, 2]
    assert all(sum(each.nbytes for each in piece[:-1]) < PIECE.nbytes for piece in pieces)
    whole = decode(data, Modality.VIDEO, spec, Limits())
    assert spans(whole) == [span for piece in pieces for span in spans(piece)]
