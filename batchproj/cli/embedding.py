"""Commands that make a collection and its space: plan, embed, train, evaluate, demo."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from batchproj.cli.console import (
    CollectionArgument,
    JsonFlag,
    SingleWriterFlag,
    SpaceOption,
    VerboseFlag,
    app,
    console,
    parse_modality,
    parse_reason,
    print_json,
    say,
    stopping_line,
)
from batchproj.cli.notices import OnFailureOption, OnSuccessOption, Summary, notices
from batchproj.credentials import masked
from batchproj.errors import UsageError
from batchproj.terminal import nonzero, printable

TOO_MANY_BAD = 3
WORK_TO_DO = 2

SourceArgument = Annotated[str, typer.Argument(help="Folder, prefix or glob; a table; tar shards.")]
RetryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--retry-quarantined",
        metavar="[REASON]",
        help="Try again what is in quarantine, for any reason or for this one; may be given several times.",
        show_default=False,
    ),
]
RecipeOption = Annotated[
    str | None, typer.Option(help="YAML file with space, limits, units, pools, index, roots, patience.")
]

TELLS_NOTHING = 0.5
"""Chance Recall@10 from which on a recall is not worth reading."""

DEFAULT_MAX_BAD = 0.05
DEFAULT_MAX_BAD_ITEMS = 50
"""Without --max-bad: 5 %, but a small corpus may have this many bad files before the exit code says so."""


ANY_REASON = "all"


class _RetryCommand(TyperCommand):
    """A command whose --retry-quarantined may stand without a reason, which typer has no means for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _with_reasons(args))


def _with_reasons(arguments: list[str]) -> list[str]:
    """The arguments with a reason behind each --retry-quarantined: any, unless a word follows that can be nothing else.

    A mistyped reason is such a word, so that it is refused with the list of those there are; a folder is none.
    """
    given: list[str] = []
    for number, argument in enumerate(arguments):
        given.append(argument)
        following = arguments[number + 1] if number + 1 < len(arguments) else "-"
        is_reason = re.fullmatch("[a-z][a-z0-9_]*", following) and not Path(following).exists()
        if argument == "--retry-quarantined" and not (is_reason or following in _reasons()):
            given.append(ANY_REASON)
    return given


def _reasons() -> list[str]:
    from batchproj.schema import Reason

    return [ANY_REASON, *Reason]


def _retried(names: list[str] | None) -> frozenset[Any]:
    """Reasons to try again."""
    if ANY_REASON in (names or []):
        return frozenset(_reasons()[1:])
    return frozenset(parse_reason(name, "--retry-quarantined") for name in names or [])


def _share(value: str) -> float:
    """From 0.05 or 5%."""
    try:
        share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise typer.BadParameter("expected a share such as 0.05 or 5%", param_hint=f"--max-bad {value}")
    return share


def _too_many_bad(quarantined: int, items: int, allowed: float | None) -> bool:
    if allowed is None:
        return quarantined > max(DEFAULT_MAX_BAD * items, DEFAULT_MAX_BAD_ITEMS)
    return quarantined > allowed * items


@app.command(
    cls=_RetryCommand, epilog="Example: batchproj plan s3://bucket/photos ./photos.batchproj --gpu-hour-price 2.5"
)
def plan(
    source: SourceArgument,
    collection: CollectionArgument,
    space: SpaceOption = None,
    recipe: RecipeOption = None,
    retry_quarantined: RetryOption = None,
    gpu_hour_price: Annotated[float | None, typer.Option(help="To give the cost, in your currency.", min=0)] = None,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Exit 2 when there is work to do, 0 when there is none.")
    ] = False,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """What `embed` would do, and what it would take; reads a small sample and writes nothing."""
    retried = _retried(retry_quarantined)
    stopping_line("stopped; a plan writes nothing")
    from batchproj.embed import usual_space
    from batchproj.estimate import lines, make_plan
    from batchproj.progress import RunProgress
    from batchproj.recipe import load_recipe
    from batchproj.space import open_space, resolve

    with console(verbose) as stream, RunProgress(stream) as progress:
        wanted = load_recipe(recipe)
        resolved = resolve(open_space(space or wanted.space or usual_space(collection)))
        document = make_plan(source, collection, resolved, wanted, gpu_hour_price, progress.step, retried)
    if as_json:
        print_json(document.model_dump(mode="json"))
    else:
        print("\n".join(printable(line) for line in lines(document, space, recipe)))
    if detailed_exitcode and not document.nothing_to_do:
        raise typer.Exit(WORK_TO_DO)


@app.command(cls=_RetryCommand, epilog="Example: batchproj embed s3://bucket/photos ./photos.batchproj")
def embed(
    source: SourceArgument,
    collection: CollectionArgument,
    space: SpaceOption = None,
    recipe: RecipeOption = None,
    max_bad: Annotated[
        float | None,
        typer.Option(
            parser=_share,
            metavar="SHARE",
            help="Exit 3 when more than this share is quarantined, and pause when it is for one reason among the last "
            "1,000 items.",
            show_default="5%, at least 50 items",
        ),
    ] = None,
    retry_quarantined: RetryOption = None,
    allow_mass_delete: Annotated[
        bool, typer.Option("--allow-mass-delete", help="Go on although over 20 % of the items are gone.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Use a space that finds worse than the live one on held-out pairs.")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Write a timeline of every unit's stages to this file, for Perfetto or chrome://tracing.",
            show_default=False,
        ),
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(help="Refuse a run that would cost more, by the estimate of plan on this machine.", min=0),
    ] = None,
    gpu_hour_price: Annotated[float | None, typer.Option(help="What an hour of a GPU costs, for --max-cost.")] = None,
    on_success: OnSuccessOption = None,
    on_failure: OnFailureOption = None,
    single_writer: SingleWriterFlag = False,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Bring a collection up to date with a source; a second run does only what changed."""
    retried = _retried(retry_quarantined)
    if max_cost is not None and gpu_hour_price is None:
        raise UsageError("--max-cost without --gpu-hour-price: expected what an hour of a GPU costs as well")
    from batchproj.budget import Budget, refuse_if_costly
    from batchproj.embed import Options, Watch, usual_space
    from batchproj.embed import embed as run_embed
    from batchproj.progress import RunProgress
    from batchproj.recipe import load_recipe
    from batchproj.space import open_space, resolve

    with notices(Summary("embed", masked(source), masked(collection)), on_success, on_failure) as summary:
        with console(verbose) as stream:
            options = Options(
                load_recipe(recipe),
                allow_mass_delete,
                single_writer,
                force=force,
                verbose=verbose,
                retry_quarantined=retried,
                max_bad=DEFAULT_MAX_BAD if max_bad is None else max_bad,
                profile=profile,
            )
            resolved = resolve(open_space(space or options.recipe.space or usual_space(collection)))
            with RunProgress(stream) as progress:
                if max_cost is not None and gpu_hour_price is not None:
                    budget = Budget(max_cost, gpu_hour_price)
                    refuse_if_costly(source, collection, resolved, options.recipe, budget, progress.step, retried)
                watch = Watch(progress.step, progress.totals, progress.progress)
                report = run_embed(source, collection, resolved, options, watch)
        summary.report = report.model_dump()
        if as_json:
            print_json(summary.report)
        else:
            _print_report(report, collection)
            untrained = [str(modality) for modality in resolved.space.untrained()]
            if untrained:
                print(f"Random weights project {' and '.join(untrained)}: batchproj train {collection} --out SPACE")
        bad = report.quarantined - _not_bad(report, collection)
        if _too_many_bad(bad, report.items, max_bad):
            summary.error = f"{bad:,} of {report.items:,} items are in quarantine, more than --max-bad allows"
            say(summary.error)
            raise typer.Exit(TOO_MANY_BAD)


def _not_bad(report: Any, collection: str) -> int:
    """Items in quarantine with which nothing is wrong, such as the sound of a silent film."""
    from batchproj.collection.ledger import quarantine_reasons
    from batchproj.objectstore import Folder
    from batchproj.schema import NOT_BAD

    if not report.quarantined:
        return 0
    found = quarantine_reasons(Folder(collection), report.run)
    return sum(found.get(reason, 0) for reason in NOT_BAD)


def _print_report(report: Any, collection: str) -> None:
    if report.commit is None and report.tried:
        items = "quarantined item" if report.tried == 1 else "quarantined items"
        print(f"Tried {report.tried:,} {items} again, in vain; run {report.run} stays live.")
    elif report.commit is None:
        print(f"Nothing to do: {report.unchanged:,} items unchanged, run {report.run} stays live.")
    else:
        named = {
            "embedded": report.embedded,
            "copied from equal bytes": report.copied,
            "projected again": report.reprojected,
            "unchanged": report.unchanged,
            "deleted": report.deleted,
            "in quarantine": report.quarantined,
        }
        did = nonzero(named) or "nothing new"
        print(f"Run {report.run} is live: {did}; {report.rows:,} rows, {report.seconds:,.1f} s.")
    if report.efficiency:
        from batchproj.collection.efficiency import lines

        print("\n".join(lines(report.efficiency)))
    if report.quarantined:
        from batchproj.collection.ledger import quarantine_reasons
        from batchproj.objectstore import Folder

        reasons = quarantine_reasons(Folder(collection), report.run).items()
        why = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
        print(f"In quarantine: {why}; what it means, and examples: batchproj quarantine {collection}")
    print(f"Search it: batchproj search {collection} 'what you look for'")


KINDS_HELP = (
    "Kind of projector: linear, mlp, mlp1x_gelu to mlp4x_gelu; transformer or cross_attention, which take tokens: "
    "embed with 'cache: tokens' in the space file first."
)


@app.command(epilog="Example: batchproj train ./photos.batchproj --out ./photos-space --projector mlp")
def train(
    collection: CollectionArgument,
    out: Annotated[str, typer.Option("--out", help="Folder for the new space, any fsspec URL; replaces one there.")],
    projector: Annotated[str, typer.Option(help=KINDS_HELP)] = "mlp",
    projector_options: Annotated[
        str,
        typer.Option(
            metavar="YAML",
            help="What the kind of projector can be told: '{hidden: [512]}' of mlp; '{queries: 32, layers: 2, "
            "width: 256}' of cross_attention. An unknown name is answered with all that there are.",
            show_default=False,
        ),
    ] = "{}",
    modality: Annotated[str | None, typer.Option(help="Only image, audio or video; else all that have pairs.")] = None,
    test_fraction: Annotated[float, typer.Option(help="Share of the pairs held out.", min=0.01, max=0.9)] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split and of the training.", min=0)] = 0,
    loss: Annotated[str, typer.Option(help="What is trained by: info_nce or sigmoid.")] = "info_nce",
    workers: Annotated[
        int | None,
        typer.Option(
            help="Stream the pairs from disk to so many workers of Ray Train; without, only many pairs do.", min=1
        ),
    ] = None,
    promote: Annotated[
        bool, typer.Option("--promote", help="Bring the collection to the new space, unless its report speaks against.")
    ] = False,
    reverse: Annotated[
        bool,
        typer.Option("--reverse", help="The other way: from the text space into the encoder's own features."),
    ] = False,
    adapter: Annotated[
        str | None,
        typer.Option(
            metavar="OLD_SPACE",
            help="Make --out a bridge instead: from the collection's text encoder into the text vectors of this space, "
            "to search what is still embedded with it.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Fit projectors into the text space on a collection's pairs; held-out pairs judge them."""
    chosen = parse_modality(modality)
    if reverse and promote:
        raise UsageError("--reverse makes no space that could be promoted: expected one of --reverse and --promote")
    if adapter is not None and promote:
        raise UsageError("--adapter makes a bridge for queries, which no collection can be brought to: no --promote")
    from batchproj import fit
    from batchproj.card import read_card, reverse_file
    from batchproj.config import read_yaml, validate
    from batchproj.embed import Watch
    from batchproj.progress import RunProgress
    from batchproj.promote import promote as run_promote
    from batchproj.space import Split
    from batchproj.train import TrainOptions
    from batchproj.train import train as run_train

    told = read_yaml(projector_options.encode(), "--projector-options")
    config = validate(fit.Config, {"seed": seed, "loss": loss, "options": told}, "train")
    options = TrainOptions(
        projector, chosen, Split(seed=seed, test_fraction=test_fraction), config, workers, reverse, verbose
    )
    if adapter is not None:
        _train_adapter(collection, adapter, out, options, as_json)
        return
    with console(verbose) as stream, RunProgress(stream) as progress:
        result = run_train(collection, out, options, progress.counted, progress.step)
        watch = Watch(progress.step, progress.totals, progress.progress)
        report, refusal = None, None
        try:
            report = run_promote(collection, out, watch, verbose) if promote else None
        except UsageError as error:  # the training is done, and there is something to tell of it
            refusal = error
    if as_json:
        print_json({**result, "promoted": report and report.model_dump()} if promote else result)
    else:
        _print_training(result, read_card(out))
    if refusal is not None:
        raise refusal
    if as_json:
        return
    if report is not None:
        _print_report(report, collection)
    elif reverse:
        files = ", ".join(reverse_file(modality) for modality in result["modality"])
        print(f"Use it in Python: batchproj.project.load(Path('{out}') / NAME).project(vectors), NAME one of {files}")
    else:
        print(f"Use it: batchproj embed SOURCE {collection} --space {out}")


def _print_training(result: dict[str, Any], card: dict[str, Any]) -> None:
    for name, scores in result["modality"].items():
        print(
            f"{name}: {scores['projector']} on {scores['pairs_train']:,} pairs; text to {name} Recall@10 "
            f"{_score(scores['r@10'])} on {scores['pairs_test']:,} held-out pairs "
            f"(ridge {_score(scores['baseline_r@10'])}, chance {_score(scores['chance_r@10'])})"
            + (": among so few, Recall@10 tells little" if scores["chance_r@10"] >= TELLS_NOTHING else "")
        )
        judged = card["modality"][name]
        for said in [*judged["verdict"], *(f"not to be promoted: {each}" for each in judged["shortcomings"])]:
            print(f"  {said}")
    print(f"The whole report: {result['space']}/README.md")


def _train_adapter(collection: str, old_space: str, out: str, options: Any, as_json: bool) -> None:
    from batchproj.adapter import train_adapter
    from batchproj.card import read_card
    from batchproj.progress import RunProgress

    with console(options.verbose) as stream, RunProgress(stream) as progress:
        result = train_adapter(collection, old_space, out, options, progress.counted, progress.step)
    if as_json:
        print_json(result)
        return
    text, card = result["modality"]["text"], read_card(out)
    print(
        f"text: {text['projector']} on {text['pairs_train']:,} texts; {text['rows_used']:,} of {text['rows']:,} rows "
        f"used; Recall@10 against the full re-embedding "
        f"{_score(text['r@10'])} on {text['pairs_test']:,} held-out texts (ridge {_score(text['baseline_r@10'])}, "
        f"the old encoder itself {_score(text['old_r@10'])}, chance {_score(text['chance_r@10'])})"
    )
    for said in card["agreement"]["verdict"]:
        print(f"  {said}")
    for modality, report in card["found"].items():
        scores = ", ".join(f"{who} {_score(each['r@10']['value'])}" for who, each in report["competitors"].items())
        print(f"text to {modality} Recall@10 among {report['items']:,} items: {scores}")
    print(f"The whole report: {out}/README.md")
    print(f"Use it: batchproj search OLD_COLLECTION 'what you look for' --space {out}")


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


@app.command(epilog="Example: batchproj evaluate ./photos.batchproj --json")
def evaluate(collection: CollectionArgument, as_json: JsonFlag = False, verbose: VerboseFlag = False) -> None:
    """Recall per ordered modality pair, ANN recall against exact search, modality gap, who fills a mixed page."""
    from batchproj.evaluate import evaluate as run_evaluate

    with console(verbose):
        result = run_evaluate(collection)
    if as_json:
        print_json(result)
    else:
        _print_evaluation(result)


def _print_evaluation(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    judged = "pairs held out of training" if result["held_out"] else "all pairs"
    title = f"run {result['run']}, {judged}" + ("" if result["pairs"] else ": none of two kinds to judge by")
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", show_header=bool(result["pairs"]))
    for name in ("query -> found", "n", "R@1", "R@5", "R@10", "chance R@10", "median rank"):
        table.add_column(name, justify="left" if name.startswith("query") else "right")
    for pair, scores in result["pairs"].items():
        recalls = [f"{scores[name]:.3f}" for name in ("r@1", "r@5", "r@10", "chance_r@10")]
        table.add_row(pair, f"{scores['n']:,}", *recalls, f"{scores['median_rank']:g}")
    Console().print(table)
    gaps = ", ".join(f"{pair} {gap:.2f}" for pair, gap in result["modality_gap"].items())
    ann = "not measured" if result["ann_recall@10"] is None else result["ann_recall@10"]
    print(f"ANN recall@10 against exact search: {ann}; modality gap: {gaps or 'none'}")
    if len(result["balance"]) == 1:
        return  # of one kind: it fills every page
    for pair, found in result["balance"].items():
        shares = f"{found['share@10']:.0%} of the first ten, {found['balanced_share@10']:.0%} with search --balance"
        print(f"{pair}: {shares} (scores {found['mean']:.2f} +- {found['std']:.2f})")


@app.command(epilog="Example: batchproj demo ./demo --size 300")
def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where everything goes.")] = Path("demo"),
    size: Annotated[int | None, typer.Option(help="How many emoji; all 1,652 otherwise.", min=40)] = None,
    clips: Annotated[int, typer.Option(help="Spoken clips of each name, each in another voice.", min=1, max=8)] = 2,
    as_json: JsonFlag = False,
    verbose: VerboseFlag = False,
) -> None:
    """Build a real corpus of pictures, words and speech; embed, train, judge and search it."""
    from batchproj.demo import demo as run_demo
    from batchproj.progress import DemoScreen

    with console(verbose) as stream, DemoScreen(stream) as screen:
        outcome = run_demo(folder, size, clips, screen, verbose)
    if as_json:
        print_json(outcome.as_dict())
        return
    _print_evaluation(outcome.evaluated)
    for shown in outcome.searches:
        names = ", ".join(printable(hit.text or hit.uri.rpartition("/")[2]) for hit in shown.hits[:4])
        print(f"  {shown.title}: {names}")
    print(f"Open {outcome.sheet} in a browser to see and hear them.")
    print(f"Next: batchproj search {outcome.collection} 'a small furry animal' --modality image")
