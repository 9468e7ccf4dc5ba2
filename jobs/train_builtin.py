"""Train the projectors of the builtin spaces again: `python jobs/train_builtin.py WORK_FOLDER`.

Builds the demo's corpus and a larger one (`builtin_corpus.py`), embeds both with tokens, and trains every kind of
projector for pictures and for sound, on the demo's pairs alone and on the larger corpus. All are judged on the same
pairs, those of the demo that the split holds out, which neither was trained on. Writes the table of it and the
projectors of `builtin` and `builtin-tokens` into the package. What is there in WORK_FOLDER is not made again. About
an hour on two cores.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import builtin_corpus
import numpy as np

from batchproj import emoji_corpus, fit
from batchproj.comparison import Interval
from batchproj.embed import Options, Watch, embed
from batchproj.emoji_corpus import VOICES
from batchproj.pairs import Samples, held_out_pairs, paired_rows, paired_samples
from batchproj.pipeline import ray_session
from batchproj.progress import RunProgress
from batchproj.projector import Projector
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import Split, open_space, resolve
from batchproj.token_features import TokenFeatures

HOME = Path(__file__).parent.parent / "batchproj" / "spaces"
KINDS = ("linear", "mlp", "cross_attention", "transformer")
CORPORA = {"demo": "the demo's pairs", "more": "the larger corpus"}

# what few pairs need against overfitting is missed where there are many
MORE = {
    Modality.IMAGE: fit.Config(max_steps=800),
    Modality.AUDIO: fit.Config(max_steps=1_000, feature_dropout=0.2),
}
SHIPPED = {Modality.IMAGE: {"hidden": [512]}, Modality.AUDIO: {}}
"""Options of the `mlp` that `builtin` has: as large as a file of 3 MB may be."""
SHIPPED_TOKENS = "cross_attention"
"""What `builtin-tokens` has for sound: the mean over time loses the order of what is said."""


@dataclass(frozen=True)
class Judged:
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


def judge(work: Path, modality: Modality, corpus: str, kind: str, projector: Projector) -> Judged:
    unseen = halves(str(work / "demo.batchproj"), modality)[1]
    held_out = unseen.held_out()
    features = unseen.features[unseen.one_an_item()]
    assert isinstance(features, TokenFeatures)
    taken = features.mean() if projector.config.in_dim == features.dim and kind == "builtin" else features
    recalls = held_out.recalls(held_out.answers(projector.project(taken)))
    return Judged(modality, corpus, kind, recalls[2], recalls[5], recalls[6])


def compare(work: Path, progress: RunProgress) -> list[Judged]:
    """Ridge regression and every kind, for both modalities and corpora; keeps what is shipped of them."""
    found = []
    for corpus in CORPORA:
        for modality in (Modality.IMAGE, Modality.AUDIO):
            seen = halves(str(work / f"{corpus}.batchproj"), modality)[0]
            config = MORE[modality] if corpus == "more" else fit.Config()
            ridge = fit.ridge(seen.features, seen.targets, seen.groups, config)
            found.append(judge(work, modality, corpus, "ridge", ridge))
            for kind in KINDS:
                progress.step(f"{modality}, {CORPORA[corpus]}: {kind}")
                projector = fitted(seen, config.model_copy(update={"kind": kind}))
                found.append(judge(work, modality, corpus, kind, projector))
                if (corpus, modality, kind) == ("more", Modality.AUDIO, SHIPPED_TOKENS):
                    ship(projector, "builtin-tokens", modality)
                progress.step(str(found[-1].mean))
    return found


def train_builtin(work: Path, progress: RunProgress) -> list[Judged]:
    """The projectors of `builtin`, from features pooled as its encoders pool them."""
    found = []
    for modality in (Modality.IMAGE, Modality.AUDIO):
        progress.step(f"{modality}, {CORPORA['more']}: builtin")
        seen = halves(str(work / "more.batchproj"), modality)[0]
        assert isinstance(seen.features, TokenFeatures)
        pooled = seen.features.mean() if modality is Modality.IMAGE else seen.features.mean_std()
        config = MORE[modality].model_copy(update={"options": SHIPPED[modality]})
        projector = fit.fit(pooled, seen.targets, seen.groups, config).projector
        ship(projector, "builtin", modality)
        found.append(judge(work, modality, "more", "builtin", projector))
    return found


def fitted(seen: Samples, config: fit.Config) -> Projector:
    return fit.fit(seen.features, seen.targets, seen.groups, config).projector


def ship(projector: Projector, space: str, modality: Modality) -> None:
    """float16 halves the file and moves no recall figure; it is widened again when loaded."""
    HOME.joinpath(space, f"{modality}.safetensors").write_bytes(projector.half().to_bytes())
    projector.float()


def table(judged: list[Judged]) -> list[str]:
    """Markdown: a line a kind, with 95 % bootstrap intervals."""
    heads = ["trained on", "modality", "kind", "text→it R@10", "it→text R@10", "mean recall"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for each in judged:
        figures = (f"{i.value:.2f} ({i.low:.2f} to {i.high:.2f})" for i in (each.to_item, each.to_text, each.mean))
        lines.append("| " + " | ".join([CORPORA[each.corpus], each.modality, each.kind, *figures]) + " |")
    return lines


CARD = """# The projectors of the builtin spaces

`builtin`: two-layer MLPs with a linear path beside them, from EfficientNet-lite0 (images, 1280-d) and Whisper tiny.en
(sound, mean and standard deviation over the frames of the real sound, 768-d) into the text space of MiniLM-L6 (384-d).
`builtin-tokens` has the same for images, and `{tokens}` over Whisper's frames for sound.

Trained by `make builtin` on 80 % of the pairs of 1,652 emoji: OpenMoji drawings (CC BY-SA 4.0, drawn by resvg), each
with {drawings} more that are turned, mirrored, of another size or on another ground; their English names; each name
spoken by {clips} of {voices} eSpeak NG voices. The sound also on 80 % of some 15,000 spoken phrases made of the word
lists of `wonderwords` (MIT); no phrase is the name of an emoji, but phrases share words with names. What it knows:
drawings of things, and English names spoken by a synthesiser. It has not seen photographs, other languages or human
speech: expect less there, and train on your own pairs.

Recall@10 on emoji never trained on ({images_judged:,} drawings and {clips_judged:,} clips of the demo's corpus), with
95 % bootstrap intervals over pairs; mean recall is the mean of Recall@1, 5 and 10 both ways. `builtin` is what is
shipped under that name; the other kinds have `train`'s own options and are over tokens (`linear`, `mlp` and `ridge`
over their mean and spread). The larger corpus gives {images:,} and {sounds:,} samples. One seed each.

{table}
"""


def card(work: Path, judged: list[Judged]) -> str:
    def samples(corpus: str, modality: Modality) -> tuple[Samples, Samples]:
        return halves(str(work / f"{corpus}.batchproj"), modality)

    return CARD.format(
        tokens=SHIPPED_TOKENS,
        drawings=builtin_corpus.FURTHER_DRAWINGS,
        clips=builtin_corpus.EMOJI_CLIPS,
        voices=len(VOICES),
        images_judged=int(samples("demo", Modality.IMAGE)[1].one_an_item().sum()),
        clips_judged=int(samples("demo", Modality.AUDIO)[1].one_an_item().sum()),
        images=len(samples("more", Modality.IMAGE)[0].pairs),
        sounds=len(samples("more", Modality.AUDIO)[0].pairs),
        table="\n".join(table(judged)),
    )


def make(work: Path, progress: RunProgress) -> None:
    """Corpora and collections, unless they are there already."""
    watch = Watch(progress.step, progress.totals, progress.progress)
    progress.step("building the corpora")
    emoji_corpus.build(work / "demo")
    if not (work / "more.batchproj").exists():
        builtin_corpus.build(work / "more")
    with ray_session(verbose=False):
        space = resolve(open_space("builtin-tokens"))
        for corpus in CORPORA:
            embed(str(work / corpus), str(work / f"{corpus}.batchproj"), space, Options(force=True), watch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("work", type=Path)
    work: Path = parser.parse_args().work
    with RunProgress(sys.stderr) as progress:
        make(work, progress)
        judged = [*train_builtin(work, progress), *compare(work, progress)]
        HOME.joinpath("builtin", "README.md").write_text(card(work, judged))
        progress.step("the table is in batchproj/spaces/builtin/README.md")


if __name__ == "__main__":
    main()
