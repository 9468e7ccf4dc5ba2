"""The folder of a bridge: the new text encoder with its adapter, what they lead to, and the card."""

from __future__ import annotations

import json
from typing import Any

from batchproj.card import CARD, cell, read_card, sentence, told_options, write_curve
from batchproj.comparison import CUTOFFS
from batchproj.errors import UsageError
from batchproj.objectstore import Folder
from batchproj.projector import Projector
from batchproj.schema import Modality
from batchproj.space import Adapts, Member, MemberFile, ProjectorFile, ResolvedSpace, Space, Split, open_space


def refuse_other_space(folder: Folder, out: str) -> None:
    """Raises UsageError if the folder holds what is no bridge: it would be lost, be it the space adapted to."""
    if folder.exists("space.yaml") and open_space(folder.uri).space.adapts is None:
        raise UsageError(f"--out {out} holds a space, which would be lost; choose an empty or a new folder")
    if folder.exists(CARD) and "adapts" not in read_card(folder.uri):
        raise UsageError(
            f"--out {out} holds the {CARD} of another training, which would be lost; choose an empty or a new folder"
        )


def make_bridge(name: str, old_text: Member, dim: int, text: Member, adapter: Projector, split: Split) -> ResolvedSpace:
    """From a text encoder into the text vectors, of `dim` dimensions, of another space."""
    member = text.with_projector(adapter.to_bytes(), dim)
    file = MemberFile(
        encoder=text.encoder_file(),
        cache=text.cache,
        segments=None if text.segments is None else text.segments.model_dump(),
        projector=ProjectorFile(kind=adapter.config.kind, weights="text.safetensors"),
    )
    adapts = Adapts(query=member.vector_fp, vectors=old_text.vector_fp)
    space = Space(name=name, dim=dim, split=split, adapts=adapts, text=file)
    return ResolvedSpace(space, {Modality.TEXT: member})


def write_bridge(folder: Folder, bridge: ResolvedSpace, card: dict[str, Any]) -> None:
    """The card first: a folder with a space file is complete.

    The space file last: killed before it, over an earlier bridge, its `adapts` is not that of the new adapter.
    """
    write_curve(folder, Modality.TEXT, card["adapter"])
    folder.write("README.md", _markdown(card).encode())
    folder.write(CARD, json.dumps(card, indent=1, allow_nan=False).encode())
    bridge.save(folder)


def _markdown(card: dict[str, Any]) -> str:
    split, trained, agreement = card["split"], card["adapter"], card["agreement"]
    lines = [
        "# Bridge between text encoders",
        "",
        f"Made by `batchproj train --adapter` on the texts of `{card['source']}`, run {card['run']}. Queries of the "
        f"new text encoder are answered by an index of space `{card['old_space']}`, whose text vectors have the "
        f"fingerprint `{card['adapts']}`, while the corpus is being embedded again; nothing is embedded with it.",
        "",
        f"Adapter `{trained['projector']}`{told_options(trained)}, loss `{trained['loss']}`, {trained['steps']} steps "
        f"on {trained['texts_train']:,} different texts; {trained['texts_test']:,} held out: those whose pair key "
        f"hashes into {split['test_fraction']:.0%} (seed {split['seed']}), linked and equal ones on one side. "
        f"{trained['texts_alike']:,} more are left out: to one of the encoders they equal a text trained on. "
        f"{_of_rows(trained)} All "
        "figures are of held-out texts as queries. Small print under a figure: its 95 % bootstrap interval, linked "
        "texts drawn together, with replacement.",
        *[f"\n{sentence(each)}" for each in card["caveats"]],
        "",
        "## Does it find what the full re-embedding would?",
        "",
        *_agreement(agreement),
    ]
    for modality, report in card["found"].items():
        lines += [
            "",
            f"## From text to {modality}",
            "",
            f"Recall of the {modality} items that belong to {report['queries']:,} held-out texts, among "
            f"{report['items']:,}. Adapter and old encoder ask among old vectors; the full re-embedding has new ones.",
            "",
            *_compared(report),
        ]
    lines += [f"\n- {sentence(each)}" for each in card["left_out"]]
    return "\n".join([*lines, "", "![Loss and recall over the steps](text.svg)", ""])


def _of_rows(trained: dict[str, Any]) -> str:
    rows, used = trained["rows"], trained["rows_used"]
    if used == rows:
        return f"They are all that the collection has: {rows:,} rows have one of them."
    return (
        f"They are a part of what the collection has: {used:,} of {rows:,} rows with a text have one of them, the "
        "texts of the others were not drawn, or the old encoder makes nothing of them."
    )


def _agreement(report: dict[str, Any]) -> list[str]:
    if not report["competitors"]:
        return ["No text was held out."]
    return [
        f"Each of {report['queries']:,} texts asks among all {report['texts']:,} different texts but itself. Recall@10 "
        "is the share of the ten nearest of the full re-embedding (new vector of the query, new vectors of the texts) "
        "that are among the ten nearest old vectors. The old encoder's line is how far the two encoders agree by "
        "themselves, with no adapter between.",
        "",
        *_compared(report),
    ]


def _compared(report: dict[str, Any]) -> list[str]:
    heads = ["", *(f"R@{k}" for k in CUTOFFS)]
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for who, figures in report["competitors"].items():
        rows.append("| " + " | ".join([who, *(cell(figures[f"r@{k}"]) for k in CUTOFFS)]) + " |")
    return [*rows, "", *(f"- {sentence(each)}" for each in report["verdict"])]
