"""Lower layers never import upper ones, and stages never import one another."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import batchproj

ROOT = Path(batchproj.__file__).parent

# Top to bottom: a module may import its own package and what stands in the rows above its own.
LAYERS = [
    ["schema", "failpoint", "terminal", "credentials", "confinement", "bounded_cache", "job_log", "lanes", "importing"],
    ["errors", "learning_curve", "text_chunks", "recorded_steps", "worker_environment"],
    ["config", "hooks", "retry", "recall", "linking", "losses", "confined_process"],
    ["segments"],
    ["media", "objectstore", "comparison"],
    ["fetching", "agreement", "cutting", "lance_store"],
    ["weights"],
    ["model_folder", "ctranslate2_file", "fixed_shapes", "log_mel", "tokens", "token_features", "attention"],
    ["accelerator", "prepacked_linear"],
    ["standardised_weights", "bf16_convolutions", "fused_convolutions", "packed_texts", "queued_batches"],
    ["clap_mel", "kaldi_fbank", "sentence_layout"],
    ["varlen_texts"],
    ["torch_runtime", "projector", "features"],
    ["token_projector"],
    ["image_encoder", "text_encoder", "video_encoder"],
    ["frame_encoder"],
    ["source", "decode", "encode", "project"],
    ["descriptions"],
    ["ridge", "objective"],
    ["space", "recipe", "fit"],
    ["collection", "report", "streamed_fit", "shipping"],
    ["card", "timeline", "jobs", "unit_row"],
    ["decoding"],
    ["stall"],
    ["news", "breaker", "embedding", "tags", "bridge", "balance"],
    ["desk"],
    ["index", "hits", "conditions", "items", "metrics", "nodes"],
    ["stages", "queries", "hybrid"],
    ["thumbnails", "asking", "pools", "run"],
    ["notebook", "small_run", "run_checks"],
    ["pipeline", "search", "changes", "switch"],
    ["pairs", "calibration", "disk_links", "execution"],
    ["training_set", "texts"],
    ["ray_training", "bridge_report"],
    ["many_pairs"],
    ["gate"],
    ["embed", "train", "evaluate", "estimate", "explain", "verify", "gc", "inventory", "quarantine", "doctor"],
    ["budget", "repair", "forget", "promote", "adapter"],
    ["espeak", "contact_sheet", "progress"],
    ["emoji_corpus"],
    ["demo", "bench", "serve"],
    ["cli"],
    ["__main__", "job_start"],
]
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
ENGINE = {
    # the benchmark's contenders are programs of their own, written as Ray Data's documentation shows; no run imports it
    "ray": {
        *("pipeline", "ray_training", "jobs", "nodes", "metrics", "serve.deployment"),
        *("bench.contenders.ray_data", "bench.contenders.ray_data_equal"),
    },
    "lancedb": {"index", "search", "conditions"},
    "lance": {"tags", "source.lance", "source.lance_child"},
    "fsspec": {f"objectstore.{name}" for name in ("uris", "listing", "reading", "folder")},
}


def modules() -> list[tuple[str, Path]]:
    files = sorted(ROOT.rglob("*.py"))
    return [(str(file.relative_to(ROOT).with_suffix("")).replace("/", "."), file) for file in files]


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize(("module", "file"), modules(), ids=[name for name, _ in modules()])
def test_imports_point_down(module: str, file: Path) -> None:
    layer = module.split(".")[0]
    if layer == "__init__":
        return
    for name in imports(file):
        if not name.startswith("batchproj."):
            continue
        target = name.split(".")[1]
        if target in (layer, "__version__"):
            continue
        assert RANK[target] < RANK[layer], f"{module} imports {name}"


@pytest.mark.parametrize(("engine", "allowed"), ENGINE.items(), ids=list(ENGINE))
def test_each_engine_is_known_to_few_modules(engine: str, allowed: set[str]) -> None:
    users = {module for module, file in modules() if engine in {name.split(".")[0] for name in imports(file)}}
    assert users <= allowed


def test_every_module_has_a_layer() -> None:
    assert {module.split(".")[0] for module, _ in modules()} - {"__init__"} <= set(RANK)
