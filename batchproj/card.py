"""The folder of a trained space: projectors, space file, and the card as JSON, Markdown and a picture."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from batchproj.comparison import CUTOFFS
from batchproj.errors import SpaceError, UsageError
from batchproj.learning_curve import learning_curve
from batchproj.objectstore import Folder
from batchproj.projector import Projector
from batchproj.report import CHANCE, NEW, RIDGE
from batchproj.schema import Modality
from batchproj.space import ProjectorFile, Space, SpaceFolder, Split

CARD = "card.json"
SCRATCH = "training"
"""What a training that streams keeps there until it is done; a killed one has left it to be gone on with."""

_OURS = re.compile(rf"space\.yaml|README\.md|card\.json|.+\.safetensors|.+\.svg|{SCRATCH}")


def writable_space(out: str, collection: str) -> Folder:
    """The folder of a space to be written from a collection; what is there may be a space, which is written over.

    Raises UsageError if it is not ours to write, and leaves no trace.
    """
    folder, trained_on = Folder(out), Folder(collection)
    if f"{folder.uri}/".startswith(f"{trained_on.uri}/"):
        raise UsageError(f"--out {out} lies inside the collection {collection}; choose a folder beside it")
    try:
        strangers = [name for name in folder.names("") if not _OURS.fullmatch(name)]
        if strangers:
            shown = ", ".join(strangers[:3]) + (" …" if len(strangers) > 3 else "")
            raise UsageError(f"--out {out} holds files that are no space's ({shown}); choose an empty or a new folder")
        _try_to_write(folder)
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written: {error}; choose another folder") from error
    return folder


def _try_to_write(folder: Folder) -> None:
    """On disk in the nearest folder that is there: a new one is made when there is something to put into it."""
    if not folder.uri.startswith("file://"):
        folder.check_create()
        return
    path = Path(folder.uri.removeprefix("file://"))
    nearest = next(each for each in (path, *path.parents) if each.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass


def write_space(
    folder: Folder, name: str, before: SpaceFolder, split: Split, projectors: Mapping[Modality, Projector]
) -> None:
    """The space as it was before, with new projectors in the place of its own."""
    members = {}
    for modality, member in before.space.members().items():
        if modality in projectors:
            weights = f"{modality}.safetensors"
            folder.write(weights, projectors[modality].to_bytes())
            kept = ProjectorFile(kind=projectors[modality].config.kind, weights=weights)
            members[str(modality)] = member.model_copy(update={"projector": kept})
        elif member.projector is not None:
            folder.write(member.projector.file, before.folder.read(member.projector.file))
    space: Space = before.space.model_copy(update={**members, "name": name, "split": split})
    folder.write("space.yaml", yaml.safe_dump(space.model_dump(exclude_none=True), sort_keys=False).encode())


def write_reverse(folder: Folder, projectors: Mapping[Modality, Projector]) -> None:
    """Projectors from the space's vectors into features of encoders: they make no space, and stand by themselves."""
    for modality, projector in projectors.items():
        folder.write(reverse_file(modality), projector.to_bytes())


def reverse_file(modality: str) -> str:
    return f"{modality}.reverse.safetensors"


def write_card(folder: Folder, card: dict[str, Any]) -> None:
    """`card.json` for programs, `README.md` for people, and a learning curve for each modality."""
    for modality, trained in card["modality"].items():
        write_curve(folder, modality, trained)
    folder.write("README.md", _markdown(card).encode())
    folder.write(CARD, json.dumps(card, indent=1, allow_nan=False).encode())


def write_curve(folder: Folder, modality: str, trained: dict[str, Any]) -> None:
    """How a projector's training went, as `{modality}.svg`; `trained` as cards keep it."""
    steps, loss, recall = ([check[key] for check in trained["history"]] for key in ("step", "loss", "recall"))
    title = f"{modality}, {trained['projector']}: {trained['steps']} steps taken over"
    folder.write(f"{modality}.svg", learning_curve(title, steps, loss, recall, trained["steps"]).encode())


def read_card(out: str) -> dict[str, Any]:
    """The card of a space that `train` wrote; raises SpaceError if there is none."""
    try:
        card: dict[str, Any] = json.loads(Folder(out).read(CARD))
    except (FileNotFoundError, ValueError) as error:
        raise SpaceError(f"no {CARD} in {out}; expected a space that `batchproj train` wrote") from error
    return card


def _markdown(card: dict[str, Any]) -> str:
    split = card["split"]
    then = card["replaced_split"] and Split(**card["replaced_split"])
    lines = [
        "# Trained projectors",
        "",
        f"Trained by `batchproj train` on the pairs of `{card['source']}`, run {card['run']}. Pairs whose key hashes "
        f"into {split['test_fraction']:.0%} (seed {split['seed']}) were held out; linked pairs stay on one side. All "
        "figures are of the held-out pairs alone. Small print under a figure: its 95 % bootstrap interval, pairs "
        "drawn with replacement. Mean recall: the mean of Recall@1, 5 and 10 both ways.",
        *[f"\n{sentence(each)}" for each in caveats([(card["replaced_space"], then)], Split(**split))],
        *_direction(card),
        "",
        *_overview(card["modality"]),
    ]
    for modality, trained in card["modality"].items():
        lines += ["", *_section(modality, trained)]
    return "\n".join([*lines, ""])


def caveats(spaces: Sequence[tuple[str, Split | None]], now: Split) -> list[str]:
    """A pair held out now may have been trained on then; with one seed, a smaller share lies in a larger one."""
    return [
        f"projectors of space '{name}' were trained with another split and may have seen some of these pairs: its "
        "figures may flatter it"
        for name, then in spaces
        if then is not None and (then.seed != now.seed or then.test_fraction < now.test_fraction)
    ]


def sentence(said: str) -> str:
    """What a card says of something, as Markdown has it."""
    return f"{said[0].upper()}{said[1:]}."


def _direction(card: dict[str, Any]) -> list[str]:
    if not card["reverse"]:
        return []
    return [
        "",
        "These go the other way, from the space's vectors to an encoder's own features (unit length, tokens by their "
        "mean): what is judged is text projected there, among the features of the items.",
    ]


def _overview(modalities: dict[str, Any]) -> list[str]:
    """One line a modality, of items found by their captions."""
    heads = ["modality", "projector", "pairs trained on", "held out", "R@1", "R@5", "R@10", "ridge R@10", "chance R@10"]
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for modality, trained in modalities.items():
        wanted = [(NEW, 1), (NEW, 5), (NEW, 10), (RIDGE, 10), (CHANCE, 10)]
        judged = trained["competitors"]
        scores = [f"{judged[who][f'text->{modality}'][f'r@{k}']['value']:.3f}" if judged else "-" for who, k in wanted]
        cells = [modality, trained["projector"], f"{trained['pairs_train']:,}", f"{trained['pairs_test']:,}", *scores]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def _section(modality: str, trained: dict[str, Any]) -> list[str]:
    said = [f"- {sentence(each)}" for each in trained["verdict"]]
    said += [f"- **Not to be promoted**: {each}." for each in trained["shortcomings"]]
    return [
        f"## {modality}",
        "",
        f"Projector `{trained['projector']}`{told_options(trained)}, loss `{trained['loss']}`, {trained['steps']} "
        f"steps on {trained['pairs_train']:,} pairs{_validated(trained)}; {trained['pairs_test']:,} held out, and "
        f"judged by {trained['groups_judged']:,} keys of these: linked pairs have one, and of very many a share is "
        "drawn.",
        "",
        *said,
        "",
        *_table(trained["competitors"]),
        "",
        f"![Loss and recall over the steps]({modality}.svg)",
    ]


def told_options(trained: dict[str, Any]) -> str:
    """What the projector's kind was told, in brackets; nothing if it was told nothing."""
    given = trained["projector_options"]
    return f" ({', '.join(f'{name} {value}' for name, value in given.items())})" if given else ""


def _validated(trained: dict[str, Any]) -> str:
    """Where pairs stream, the slice that chooses among the checkpoints is not trained on in the end."""
    return f", chosen among by {trained['pairs_validation']:,} others" if trained["pairs_validation"] else ""


def _table(competitors: dict[str, Any]) -> list[str]:
    if not competitors:
        return ["No pair was held out."]
    ways = [way for way in next(iter(competitors.values())) if "->" in way]
    heads = [f"{way} R@{k}" for way in ways for k in CUTOFFS]
    medians = [f"{way} median rank" for way in ways]
    heads = ["", *heads, "mean recall", *medians, "modality gap"]
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, figures in competitors.items():
        recalls = [figures[way][f"r@{k}"] for way in ways for k in CUTOFFS] + [figures["mean_recall"]]
        gap = "-" if figures["modality_gap"] is None else f"{figures['modality_gap']:.2f}"
        cells = [name, *map(cell, recalls), *(f"{figures[way]['median_rank']:g}" for way in ways), gap]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def cell(figure: dict[str, float]) -> str:
    """A figure of a card in a Markdown table, its interval below in small print."""
    return f"{figure['value']:.3f}<br><sub>{figure['low']:.2f} to {figure['high']:.2f}</sub>"
