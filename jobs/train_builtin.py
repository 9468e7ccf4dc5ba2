"""Train the projectors of the builtin spaces again: `python jobs/train_builtin.py WORK_FOLDER`.

Builds the demo's corpus and a larger one (`builtin_corpus.py`) and embeds both with tokens. Trains every kind of
projector for pictures and for sound on the demo's pairs, and those that are shipped on the larger corpus. All are
judged on the same pairs, those of the demo that the split holds out, which none was trained on. Writes the table of it
and the projectors of `builtin` into the package. What is there in WORK_FOLDER, collections,
projectors and figures, is not made again. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import builtin_corpus
import numpy as np
from pydantic import BaseModel

from batchproj import emoji_corpus, fit, project
from batchproj.comparison import Interval
from batchproj.embed import Options, Watch, embed
from batchproj.emoji_corpus import VOICES
from batchproj.fit import Features
from batchproj.pairs import Samples, held_out_pairs, paired_rows, paired_samples
from batchproj.pipeline import ray_session
from batchproj.progress import RunProgress
from batchproj.projector import Projector
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Split, open_space, resolve
from batchproj.token_features import TokenFeatures

Say = Callable[[str], None]

HOME = Path(__file__).parent.parent / "batchproj" / "spaces" / "builtin"
MODALITIES = (Modality.IMAGE, Modality.AUDIO)
KINDS = ("linear", "mlp", "cross_attention", "transformer")
CORPORA = {"demo": "the demo's pairs", "more": "the larger corpus"}

BUILTIN = "builtin"
"""`mlp` over features as the encoders of `builtin` pool them, as large as a file of 3 MB may be."""
BUILTIN_OPTIONS = {Modality.IMAGE: {"hidden": [512]}, Modality.AUDIO: {}}

MANY_CLIPS = fit.Config(max_steps=1_000, feature_dropout=0.2)
"""What few pairs need against overfitting is missed where there are many."""

ON_MORE = {Modality.IMAGE: ("ridge", "mlp", BUILTIN), Modality.AUDIO: ("ridge", BUILTIN)}


class Judged(BaseModel):
    """Recall@10 of captions to items and of items to captions, and the mean recall."""

    modality: Modality
    corpus: str
    kind: str
    to_item: Interval
    to_text: Interval
    mean: Interval


@cache
def halves(uri: str, modality: Modality) -> tuple[Samples, Samples]:
    """Samples to train on, and those of held-out pairs."""
    collection = Collection(uri)
    rows = paired_rows(collection)
    held_out = held_out_pairs(rows, Split())
    samples = paired_samples(collection, rows, modality)
    assert samples is not None
    tested = np.array([pair in held_out for pair in samples.pairs], dtype=bool)
    return samples.where(~tested), samples.where(tested)


def compare(work: Path, modality: Modality, say: Say) -> list[Judged]:
    """Ridge regression and every kind on the demo's pairs; on the larger corpus what is shipped, and others."""
    wanted = [*(("demo", kind) for kind in ("ridge", *KINDS)), *(("more", kind) for kind in ON_MORE[modality])]
    return [judged(work, modality, corpus, kind, say) for corpus, kind in wanted]


def judged(work: Path, modality: Modality, corpus: str, kind: str, say: Say) -> Judged:
    """Trained and judged, unless it was before."""
    file = made(work, modality, corpus, kind).with_suffix(".json")
    if not file.exists():
        say(f"{modality}, {CORPORA[corpus]}: {kind}")
        seen, _ = halves(str(work / f"{corpus}.batchproj"), modality)
        _, unseen = halves(str(work / "demo.batchproj"), modality)
        assert not {*seen.pairs} & {*unseen.pairs}
        # float16 halves the file, and is what is shipped and judged
        projector = project.loads(trained(seen, modality, corpus, kind).half().to_bytes())
        held_out = unseen.held_out()
        features = taken(unseen.features[unseen.one_an_item()], modality, kind)
        recalls = held_out.recalls(held_out.answers(projector.project(features)))
        found = Judged(
            modality=modality, corpus=corpus, kind=kind, to_item=recalls[2], to_text=recalls[5], mean=recalls[6]
        )
        say(f"{modality}, {CORPORA[corpus]}: {kind}, mean recall {found.mean}")
        file.parent.mkdir(exist_ok=True)
        file.with_suffix(".safetensors").write_bytes(projector.half().to_bytes())
        file.write_text(found.model_dump_json())
    return Judged.model_validate_json(file.read_text())


def made(work: Path, modality: Modality, corpus: str, kind: str) -> Path:
    return work / "projectors" / f"{corpus}-{modality}-{kind}.safetensors"


def trained(seen: Samples, modality: Modality, corpus: str, kind: str) -> Projector:
    config = MANY_CLIPS if (corpus, modality) == ("more", Modality.AUDIO) else fit.Config()
    features = taken(seen.features, modality, kind)
    if kind == "ridge":
        return fit.ridge(features, seen.targets, seen.groups, config)
    chosen = {"options": BUILTIN_OPTIONS[modality]} if kind == BUILTIN else {"kind": kind}
    return fit.fit(features, seen.targets, seen.groups, config.model_copy(update=chosen)).projector


def taken(features: Features, modality: Modality, kind: str) -> Features:
    """The tokens, or what the encoders of `builtin` pool them to."""
    assert isinstance(features, TokenFeatures)
    if kind != BUILTIN:
        return features
    return features.mean() if modality is Modality.IMAGE else features.mean_std()


def ship(work: Path) -> None:
    for modality in MODALITIES:
        shutil.copy(made(work, modality, "more", BUILTIN), HOME / f"{modality}.safetensors")


def table(found: list[Judged]) -> list[str]:
    """Markdown: a line a kind, with 95 % bootstrap intervals."""
    heads = ["trained on", "modality", "kind", "text→it R@10", "it→text R@10", "mean recall"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for each in found:
        figures = (f"{i.value:.2f} ({i.low:.2f} to {i.high:.2f})" for i in (each.to_item, each.to_text, each.mean))
        lines.append("| " + " | ".join([CORPORA[each.corpus], each.modality, each.kind, *figures]) + " |")
    return lines


CARD = """# The projectors of the builtin space

Two-layer MLPs with a linear path beside them, from EfficientNet-lite0 (images, 1280-d) and Whisper tiny.en (sound, mean
and standard deviation over the frames of the real sound, 768-d) into the text space of MiniLM-L6 (384-d).

Trained by `make builtin` on 80 % of the pairs of 1,652 emoji: OpenMoji drawings (CC BY-SA 4.0, drawn by resvg), each
with {drawings} more that are turned, mirrored, of another size or on another ground; their English names; each name
spoken by {clips} of {voices} eSpeak NG voices. The sound also on 80 % of some 15,000 spoken phrases made of the word
lists of `wonderwords` (MIT); no phrase is the name of an emoji, however spelt, but they share words. What it knows:
drawings of things, and English names spoken by a synthesiser. It has not seen photographs, other languages or human
speech: expect less there, and train on your own pairs.

Recall@10 on emoji never trained on ({images_judged:,} drawings and {clips_judged:,} clips of the demo's corpus), with
95 % bootstrap intervals over pairs; mean recall is the mean of Recall@1, 5 and 10 both ways. `builtin` is what is
shipped under that name; the other kinds have `train`'s own options and are over tokens (`linear`, `mlp` and `ridge`
over their mean and spread). The larger corpus gives {images:,} and {sounds:,} samples. One seed each.

{table}
"""


def card(work: Path, found: list[Judged]) -> str:
    def samples(corpus: str, modality: Modality) -> tuple[Samples, Samples]:
        return halves(str(work / f"{corpus}.batchproj"), modality)

    return CARD.format(
        drawings=builtin_corpus.FURTHER_DRAWINGS,
        clips=builtin_corpus.EMOJI_CLIPS,
        voices=len(VOICES),
        images_judged=int(samples("demo", Modality.IMAGE)[1].one_an_item().sum()),
        clips_judged=int(samples("demo", Modality.AUDIO)[1].one_an_item().sum()),
        images=len(samples("more", Modality.IMAGE)[0].pairs),
        sounds=len(samples("more", Modality.AUDIO)[0].pairs),
        table="\n".join(table(found)),
    )


def make(work: Path, progress: RunProgress) -> None:
    """Corpora and collections, unless they are there already."""
    watch = Watch(progress.step, progress.totals, progress.progress)
    missing = [corpus for corpus in CORPORA if not (work / f"{corpus}.batchproj").exists()]
    if not missing:
        return
    progress.step("building the corpora")
    emoji_corpus.build(work / "demo")
    builtin_corpus.build(work / "more")
    with ray_session(verbose=False):
        space = resolve(open_space("builtin-tokens"))
        for corpus in missing:
            embed(str(work / corpus), str(work / f"{corpus}.batchproj"), space, Options(), watch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("work", type=Path)
    work: Path = parser.parse_args().work
    with RunProgress(sys.stderr) as progress:
        make(work, progress)
        found = [each for modality in MODALITIES for each in compare(work, modality, progress.step)]
        ship(work)
        HOME.joinpath("README.md").write_text(card(work, found))
        progress.step("the table is in batchproj/spaces/builtin/README.md")


if __name__ == "__main__":
    main()
