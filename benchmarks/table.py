"""One table of all benchmarks, from the JSON files of benchmarks/results: docs/benchmarks.md."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.profile_pipeline import LONGEST
from benchmarks.timing import RESULTS
from retrace.pipeline.artifacts import read_json, written_whole

PAGE = Path("docs/benchmarks.md")
Row = tuple[str, str, str, str, float]
Result = dict[str, Any]


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def compared(
    what: str, other: str, rates: dict[str, float], ours: str, theirs: str, unit: str
) -> Row:
    """A row of two rates, the larger the better."""
    cells = (f"{number(rates[key])} {unit}" for key in (ours, theirs))
    return (what, next(cells), other, next(cells), rates[ours] / rates[theirs])


def imputation(result: Result) -> Iterator[Row]:
    if "neighbours" in result:
        yield compared(
            "nearest training images by known pixels",
            "scikit-learn's nan_euclidean_distances",
            result["neighbours"]["images_per_second"],
            "matrix products",
            "scikit-learn",
            "images/s",
        )
    for network, entry in result["networks"].items():
        yield compared(
            f"imputation by `{network}`, all images and masks in one batch",
            "a loop over images",
            entry["images_per_second"],
            "batched",
            "one at a time",
            "images/s",
        )


def ssim(result: Result) -> Iterator[Row]:
    yield compared(
        "SSIM of a batch",
        "a loop over scikit-image",
        result["pairs_per_second"],
        "batch",
        "loop",
        "pairs/s",
    )


def kkt(result: Result) -> Iterator[Row]:
    for network, entry in result["networks"].items():
        seconds = entry["seconds"]
        yield (
            f"one step of the KKT attack, gradients written out, `{network}`",
            f"{number(seconds['written out'])} s",
            "`loss.backward()`",
            f"{number(seconds['loss.backward()'])} s",
            entry["ratio"]["loss.backward()"],
        )


def decoder_inversion(result: Result) -> Iterator[Row]:
    yield compared(
        "bounded layer-wise inversion, all images at once",
        "scipy, one image at a time",
        result["bounded"]["images_per_second"],
        "batched",
        "one at a time",
        "images/s",
    )


def network_inversion(result: Result) -> Iterator[Row]:
    for task, entry in result["tasks"].items():
        yield compared(
            f"network inversion, {task}",
            "the loop that a user would write",
            entry["targets_per_second"],
            "one batch",
            "user's loop",
            "targets/s",
        )


def precision(result: Result) -> Iterator[Row]:
    for what, entry in result["works"].items():
        seconds, errors = entry["seconds"], entry["errors"]
        yield (
            f"mixed precision, `{what}` (error {errors['mixed'] / errors['float32']:.4f} times)",
            f"{number(seconds['mixed'])} s",
            "float32",
            f"{number(seconds['float32'])} s",
            entry["ratio"],
        )


def waiting(result: Result) -> Iterator[Row]:
    for what, seconds in result["works"].items():
        ours = "briefly, as here"
        for other in sorted(seconds.keys() - {ours}):
            yield (
                f"threads that wait briefly: {what}",
                f"{number(1000 * seconds[ours])} ms",
                other,
                f"{number(1000 * seconds[other])} ms",
                seconds[other] / seconds[ours],
            )


def overhead(result: Result) -> Iterator[Row]:
    ours, others = (result["runs"][way] for way in ("retrace run", "dvc repro"))
    yield (
        f"the demo from an empty cache by `retrace run`, {ours['share_of_work']:.0%} of it work",
        f"{number(ours['wall_seconds'])} s",
        f"`dvc repro`, {others['share_of_work']:.0%}",
        f"{number(others['wall_seconds'])} s",
        others["wall_seconds"] / ours["wall_seconds"],
    )
    seconds = result["noop_seconds"]
    yield (
        "`dvc repro` with nothing to do",
        f"{number(seconds['dvc repro'])} s",
        "`dvc status`",
        f"{number(seconds['dvc status'])} s",
        seconds["dvc status"] / seconds["dvc repro"],
    )


ROWS: dict[str, Callable[[Result], Iterator[Row]]] = {
    "imputation": imputation,
    "ssim": ssim,
    "kkt": kkt,
    "decoder_inversion": decoder_inversion,
    "network_inversion": network_inversion,
    "precision": precision,
    "waiting": waiting,
    "overhead": overhead,
}


def growth(result: Result) -> Iterator[str]:
    """Lines of the table of growth curves."""
    yield "| of | sizes | processor seconds | exponent | MiB more | exponent |"
    yield "| --- | --- | --- | ---: | --- | ---: |"
    for what, curve in result["curves"].items():
        columns = [
            ", ".join(number(point[key]) for point in curve["points"])
            for key in ("size", "seconds", "mebibytes")
        ]
        seconds, memory = (f"{curve['exponents'][k]['all']:.2f}" for k in ("seconds", "mebibytes"))
        yield f"| {what} | {columns[0]} | {columns[1]} | {seconds} | {columns[2]} | {memory} |"


def profile(result: Result) -> Iterator[str]:
    """Lines of the tables of where a whole run's time goes."""
    wall, work = result["wall_seconds"], result["working_seconds"]
    yield (
        f"The whole pipeline from an empty cache took {wall / 60:.0f} minutes, "
        f"{1 - work / wall:.0%} of which was neither training nor reconstruction "
        "(`python -m benchmarks.profile_pipeline FOLDER`). By kind of stage, and the longest:"
    )
    yield ""
    yield "| stages | number | seconds |"
    yield "| --- | ---: | ---: |"
    for kind, entry in sorted(result["kinds"].items(), key=lambda item: -item[1]["seconds"]):
        yield f"| {kind} | {entry['runs']} | {entry['seconds']:.0f} |"
    yield ""
    yield "| stage | seconds |"
    yield "| --- | ---: |"
    for stage, seconds in sorted(result["stages"].items(), key=lambda item: -item[1])[:LONGEST]:
        yield f"| {stage} | {seconds:.0f} |"


def membership(result: Result) -> Iterator[str]:
    """Lines of the table of membership by shadow networks and without."""
    yield (
        "| network | attack | members | held-out | at 0 false positives | at 0.1 % | at 1 % | AUC "
        "| shadows | their training, s |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for network, kinds in result["networks"].items():
        for kind in ("offline", "online"):
            entry = kinds[kind]
            for attack, found in entry["attacks"].items():
                shares = [
                    f"{found[key]:.1%} ({found[f'{key}_low']:.0%} – {found[f'{key}_high']:.0%})"
                    if key in found
                    else "–"
                    for key in ("tpr_0", "tpr_0.1", "tpr_1")
                ]
                trained = attack.startswith("LiRA")
                cells = [
                    *(f"`{network}`", attack, str(entry["n"]), f"{entry['null_n']:,}", *shares),
                    f"{found['auc']:.3f}",
                    *((str(entry["shadows"]), f"{entry['seconds']:.0f}") if trained else "––"),
                ]
                yield f"| {' | '.join(cells)} |"


def page(results: dict[str, Result]) -> str:
    """The whole page; a benchmark without a result is left out."""
    lines = [
        "# Benchmarks",
        "",
        "Each as measured when it was last run, by `make bench`; the full results, and what they "
        "were measured on, are in `benchmarks/results/`. The ratio is how many times as fast as "
        "what a user would do instead.",
        "",
        "| what | here | instead | there | ratio |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for name, rows in ROWS.items():
        for what, ours, other, theirs, ratio in rows(results[name]) if name in results else ():
            lines.append(f"| {what} | {ours} | {other} | {theirs} | **{number(ratio)}** |")
    if "growth" in results:
        lines += [
            "",
            "How time and memory grow: imputation by images, masks and restarts, ten steps; the "
            "published attack by candidates, ten steps. An exponent of 1: twice as many, twice as "
            "much.",
            "",
            *growth(results["growth"]),
        ]
    if "membership" in results:
        lines += [
            "",
            "Members found, by the weights (`stationarity`), by the loss, and by shadow networks "
            "trained as the attacked one was (LiRA, Carlini et al. 2022, arXiv 2112.03570), on the "
            "same images; in brackets 95 % bootstrap intervals. Offline, no shadow saw any of the "
            "images; with two sides, how sure they are of their own stands for members. Online, "
            "some saw each: a pool of the members and some of the held-out images, on which the "
            "other attacks are scored too (`python -m benchmarks.bench_membership`).",
            "",
            *membership(results["membership"]),
        ]
    if "pipeline" in results:
        lines += ["", *profile(results["pipeline"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    results = {path.stem: read_json(path) for path in sorted(RESULTS.glob("*.json"))}
    with written_whole(PAGE) as temporary:
        temporary.write_text(page(results), encoding="utf-8")
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
