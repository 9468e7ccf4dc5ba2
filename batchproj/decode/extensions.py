"""What the name of an item promises; light, for planning a run decodes nothing."""

from __future__ import annotations

from batchproj.schema import Modality

# `.ts` is in neither list: as often TypeScript as an MPEG transport stream.
_EXTENSIONS = {
    Modality.TEXT: (
        "txt text md markdown rst tex log json jsonl ndjson csv tsv html htm xhtml xml yaml yml toml "
        "ini cfg conf srt vtt sub ass lrc py js jsx tsx css c h cc cpp hpp cs java kt go rs rb php pl "
        "lua r sh sql swift scala org adoc bib po properties caption"
    ),
    Modality.IMAGE: (
        "png apng jpg jpeg jpe jfif webp gif bmp dib tif tiff svg eps psd heic heif avif ico jp2 j2k "
        "jxl xcf dng cr2 nef arw"
    ),
    Modality.AUDIO: (
        "wav wave rf64 flac ogg oga opus spx mp3 mp2 m4a m4b aac aif aiff aifc au snd caf amr wma weba mka"
    ),
    Modality.VIDEO: "mp4 m4v mov mkv webm avi wmv asf flv mpg mpeg m2v m2ts mts 3gp 3g2 ogv",
}
_HINTS = {extension: modality for modality, names in _EXTENSIONS.items() for extension in names.split()}


_PICTURES = {
    **dict.fromkeys(("png", "apng"), "PNG"),
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif"), "JPEG"),
    **dict.fromkeys(("bmp", "dib"), "BMP"),
    **dict.fromkeys(("tif", "tiff"), "TIFF"),
    "gif": "GIF",
    "webp": "WebP",
}


def hint(name: str) -> Modality | None:
    """Modality that the file name's extension promises, None for one that promises nothing."""
    return _HINTS.get(extension(name))


def picture_named(name: str) -> str | None:
    """The format of pictures, of those that are opened, that the extension promises."""
    return _PICTURES.get(extension(name))


def extension(name: str) -> str:
    """All that is heeded of a name: `jpg` of `a/B.JPG`."""
    stem, _, last = name.rpartition("/")[2].rpartition(".")  # a tenth of the time of splitext: it is asked of every key
    return last.lower() if stem.strip(".") else ""


def is_film(name: str) -> bool:
    """Whether the file name promises a video."""
    return hint(name) is Modality.VIDEO
