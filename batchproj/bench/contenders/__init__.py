"""Who is compared: one file each, run by `contender.main` in a process of its own. Imports none of them.

They are programs, not parts of one: a technique that stands in one of them is looked at there, as a whole.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field

from batchproj.bench.contender import Window
from batchproj.bench.workloads import Workload
from batchproj.errors import UsageError
from batchproj.schema import Modality
from batchproj.worker_environment import KEPT_MEMORY


@dataclass(frozen=True)
class Contender:
    """`needs` are packages to import; `window` is how it has Whisper hear short sounds; `lacks` says for which
    modalities it has no way to use the same weights, and why; `environment` is what its process starts with."""

    name: str
    about: str
    needs: tuple[str, ...] = ()
    window: Window = "padded"
    lacks: tuple[tuple[Modality, str], ...] = ()
    reprojects: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return f"{__name__}.{self.name.replace('-', '_')}"

    def why_not(self, workload: Workload) -> str | None:
        """Why it does not take part in a workload, None if it does."""
        if workload.is_reprojection and not self.reprojects:
            return "keeps no features to project again"
        if reason := dict(self.lacks).get(workload.modality):
            return reason
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(missing)}; pip install 'batchproj[bench]'" if missing else None


_TEXT_ALONE = ((Modality.IMAGE, "is for text"), (Modality.AUDIO, "is for text"))
_UNEQUAL_SOUND = ((Modality.AUDIO, "is compared on texts and pictures"),)

CONTENDERS = {
    each.name: each
    for each in (
        Contender("bare-default", "the loop that people write: fp32, as the files come, batches of 64"),
        Contender(
            "bare-best",
            "by hand with all that pays, no framework: the ceiling",
            window="real",
            reprojects=True,
            environment=KEPT_MEMORY,  # as workers of a session of batchproj's own have it
        ),
        Contender("batchproj", "batchproj embed", window="real", reprojects=True),
        Contender("ray-data", "Ray Data, as its documentation shows"),
        Contender("ray-data-equal", "Ray Data with batchproj's encoder", lacks=_UNEQUAL_SOUND),
        Contender("daft-equal", "Daft with batchproj's encoder", ("daft",), lacks=_UNEQUAL_SOUND),
        Contender("daft-udf", "Daft with a class as UDF, as its documentation shows", ("daft",)),
        Contender(
            "daft-embed",
            "Daft's embed_text as it comes",
            ("daft", "sentence_transformers"),
            lacks=(
                (Modality.IMAGE, "embed_image calls get_image_features, which these weights have not"),
                (Modality.AUDIO, "Daft embeds no sound"),
            ),
        ),
        Contender(
            "sentence-transformers", "its encode as it comes", ("sentence_transformers",), lacks=_TEXT_ALONE
        ),
    )
}  # fmt: skip
CEILING, DEFAULT = "bare-best", "bare-default"


def chosen(names: Iterable[str]) -> list[Contender]:
    """Contenders by name, all without one, and always the ceiling: UsageError for a name that is none."""
    wanted = list(names) or list(CONTENDERS)
    for name in wanted:
        if name not in CONTENDERS:
            raise UsageError(f"no contender '{name}': expected some of {', '.join(CONTENDERS)}")
    return [each for name, each in CONTENDERS.items() if name in wanted or name == CEILING]


__all__ = ["CEILING", "CONTENDERS", "DEFAULT", "Contender", "chosen"]
