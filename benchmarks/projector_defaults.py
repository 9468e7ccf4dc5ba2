"""Do the defaults of `train` win? On corpora that they were not made for, against ridge regression and a tuned MLP.

    python benchmarks/projector_defaults.py CACHE [--corpora emoji,duos] [--pairs 150,400,1000] [--seeds 0,1]

All three get the same pairs' features: 80 % of `pairs` to train on, and are judged on the same 300 others. Prints a
Markdown table of the mean recall (Recall@1, 5 and 10, both ways), and after it whether the defaults reach the better
of the two, with the 95 % bootstrap interval of the difference over all pairs judged.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from unseen_corpora import CORPORA, Array, Corpus, load

from batchproj import fit
from batchproj.comparison import HeldOut

JUDGED = 300
TRIED = [(512, 0.5, 0.05, "info_nce"), (512, 0.2, 0.01, "cosine"), (1024, 0.5, 0.05, "info_nce")]
"""Hidden width, dropout, weight decay and loss of the two-layer MLPs that validation chooses from."""

STEPS, CHECK_EVERY, VALIDATION = 240, 20, 0.15


class Mlp:
    """A plain two-layer MLP on standardised features, trained by AdamW on a cosine schedule."""

    def __init__(self, corpus: Corpus, setting: tuple[int, float, float, str], seed: int) -> None:
        hidden, dropout, decay, self._loss_name = setting
        torch.manual_seed(seed)
        self._mean, self._spread = corpus.features.mean(axis=0), corpus.features.std(axis=0) + 1e-6
        self._inputs, self._targets = self._standard(corpus.features), torch.from_numpy(corpus.captions)
        self._net = torch.nn.Sequential(
            torch.nn.Dropout(dropout),
            torch.nn.Linear(self._inputs.shape[1], hidden),
            torch.nn.GELU(),
            torch.nn.Dropout(dropout),
            torch.nn.Linear(hidden, self._targets.shape[1]),
        )
        self._optimizer = torch.optim.AdamW(self._net.parameters(), 1e-3, weight_decay=decay)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, STEPS)

    def step(self) -> None:
        self._net.train()
        rows = torch.randperm(len(self._inputs))[:256]
        vectors, targets = functional.normalize(self._net(self._inputs[rows]), dim=-1), self._targets[rows]
        if self._loss_name == "cosine":
            loss = (1 - (vectors * targets).sum(dim=1)).mean()
        else:
            logits, own = vectors @ targets.T / 0.05, torch.arange(len(rows))
            loss = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()

    @torch.no_grad()
    def project(self, features: Array) -> Array:
        self._net.eval()
        vectors: Array = functional.normalize(self._net(self._standard(features)), dim=-1).numpy()
        return vectors

    def _standard(self, features: Array) -> torch.Tensor:
        return torch.from_numpy((features - self._mean) / self._spread)


def tuned_mlp(corpus: Corpus, seed: int) -> Mlp:
    """The setting and the number of steps that validation likes best, then trained on everything."""
    order = np.random.default_rng(seed).permutation(len(corpus.features))
    cut = max(2, round(VALIDATION * len(order)))
    judged, seen = part(corpus, order[:cut]), part(corpus, order[cut:])
    held_out = held_out_set(judged)
    best: tuple[float, int, Any] = (-1.0, 0, None)
    for setting in TRIED:
        mlp = Mlp(seen, setting, seed)
        for step in range(1, STEPS + 1):
            mlp.step()
            if step % CHECK_EVERY == 0:
                best = max(best, (mean_recall(held_out, mlp.project(judged.features)), step, setting))
    chosen = Mlp(corpus, best[2], seed)
    for _ in range(best[1]):
        chosen.step()
    return chosen


def part(corpus: Corpus, rows: Any) -> Corpus:
    return Corpus(corpus.features[rows], corpus.captions[rows])


def held_out_set(corpus: Corpus) -> HeldOut:
    """Equal captions are right for each other."""
    captions, caption = np.unique(corpus.captions, axis=0, return_inverse=True)
    return HeldOut([str(number) for number in caption], captions, [str(number) for number in range(len(captions))])


def mean_recall(held_out: HeldOut, vectors: Array) -> float:
    answers = held_out.answers(vectors)
    return float(np.mean([hits.mean(axis=0) for hits in (answers.to_item, answers.to_text)]))


def cases(
    names: list[str], pairs: list[int], seeds: list[int], cache: Path
) -> Iterator[tuple[str, int, int, Any, Any]]:
    for name in names:
        corpus = load(name, cache)
        for count in pairs:
            for seed in seeds:
                order = np.random.default_rng(100 + seed).permutation(len(corpus.features))
                trained = part(corpus, order[JUDGED : JUDGED + round(0.8 * count)])
                yield name, count, seed, trained, part(corpus, order[:JUDGED])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--corpora", default=",".join(CORPORA))
    parser.add_argument("--pairs", default="150,400,1000")
    parser.add_argument("--seeds", default="0,1")
    given = parser.parse_args()
    pairs, seeds = ([int(each) for each in listed.split(",")] for listed in (given.pairs, given.seeds))
    gains = []
    print("| corpus | pairs | seed | ridge | tuned MLP | defaults |\n|---|---|---|---|---|---|")
    for name, count, seed, trained, judged in cases(given.corpora.split(","), pairs, seeds, given.cache):
        config, groups = fit.Config(seed=seed), [str(number) for number in range(len(trained.features))]
        held_out = held_out_set(judged)
        vectors = [
            projector.project(judged.features)
            for projector in (
                fit.ridge(trained.features, trained.captions, groups, config),
                tuned_mlp(trained, seed),
                fit.fit(trained.features, trained.captions, groups, config).projector,
            )
        ]
        recalls = [mean_recall(held_out, each) for each in vectors]
        rival = vectors[int(np.argmax(recalls[:2]))]
        gains.append(held_out.gain(held_out.answers(vectors[2]), held_out.answers(rival)))
        print(f"| {name} | {count} | {seed} | " + " | ".join(f"{each:.3f}" for each in recalls) + " |", flush=True)
    values = [gain.value for gain in gains]
    print(f"\nDefaults minus the better of the two: mean {np.mean(values):+.3f}, least {min(values):+.3f}.")
    print(f"Beyond doubt worse in {sum(gain.high < 0 for gain in gains)} of {len(gains)} cases.")


if __name__ == "__main__":
    main()
