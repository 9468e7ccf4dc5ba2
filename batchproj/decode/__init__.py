"""Bytes in, segments out: pixels, samples, text, cut and shaped to the encoder's wish.

    extensions.py  what the name promises        item.py    one item, by its modality
    sniff.py       what the bytes are, from the bytes; the name is a hint
    image.py       -> one (H, W, 3) uint8 segment
    audio.py       -> (N,) float32 mono segments of at most one window
    text.py        -> text segments within the token limit
    video.py       -> (T, H, W, 3) uint8 segments of T frames
    film.py        a video's frames, by time        scenes.py where it is cut
    container.py   the formats that PyAV opens      mpeg.py   frames of MPEG audio
    complete.py    is the file all there?           limits.py  faults.py  versions.py
    process.py     all of these but text in a process of its own, child.py: it opens nothing, and may be killed

What cannot be used raises `ItemFault`: a quarantine row, never a stop. All of it is safe to call
from many threads at once.
"""
