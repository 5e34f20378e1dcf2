"""Which curves the page has: vision stage, losses by source, speed and steadiness."""

from typing import Any

from mllm.report.curves import Series, chart, series
from mllm.report.inputs import Run
from mllm.report.markup import Markup, h, join

BITS = "validation_bits_per_byte"  # the field of a validation line
BITS_UNIT = "of text, held-out documents"

# Metrics that a run may have or not: key, title, unit.
FURTHER = (
    ("mfu", "MFU", "useful FLOPs as a share of the device's peak"),
    ("slowest_rank", "Slowest rank", "its number"),
    ("loss_scale", "Loss scale", "of fp16"),
)


def curve_section(runs: list[Run]) -> Markup:
    vision = [run for run in runs if run.is_vision]
    token_runs = [run for run in runs if not run.is_vision]
    groups = [
        ("Vision stage", vision_charts(vision)),
        ("Losses", loss_charts(token_runs)),
        ("Speed and steadiness", engine_charts(runs)),
    ]
    parts = []
    for name, charts in groups:
        drawn = [figure for figure in charts if figure is not None]
        if drawn:
            parts += [h("h3", name), h("div", drawn, class_="charts")]
    if not parts:
        return h("p", "No metrics yet: there is nothing to draw.", class_="note")
    note = (
        "Thin lines are steps (short means of them in a long run), thick lines a running mean, "
        "dots held-out data. Loss is "
        "in nats per scored token: the model spreads its guess as if over e^loss tokens, so 2.3 "
        "is one in ten."
    )
    if any(BITS in line for run in token_runs for line in run.validations):
        note += (
            " Bits per byte spread the same held-out loss over the bytes of the text, so that "
            "models with different tokenizers can be compared."
        )
    return join([h("p", note), parts])


def metric(runs: list[Run], key: str) -> list[Series]:
    """One curve a run of a per-step metric."""
    return [
        series(run.label, ((line["step"], line.get(key)) for line in run.steps), run.color)
        for run in runs
    ]


def validated(run: Run, key: str, label: str, color: int, of: str = "validation") -> Series:
    """Points of a held-out score: `key` in the field `of` of the lines that have it."""
    points = ((line["step"], line.get(of, {}).get(key)) for line in run.validations)
    return series(label, points, color, is_sparse=True)


def vision_charts(runs: list[Run]) -> list[Markup | None]:
    keys = sorted({key for run in runs for line in run.validations for key in line["validation"]})
    charts = [
        chart(
            {"zero_shot_5way": "Naming held-out pictures, 5-way"}.get(key, f"Validation: {key}"),
            "share right, by matching picture and name" if "5way" in key else "",
            [validated(run, key, run.label, run.color) for run in runs],
            reference=("chance", 0.2) if key == "zero_shot_5way" else None,
        )
        for key in keys
    ]
    return [
        chart(
            "Matching accuracy",
            "share right within the training batch",
            metric(runs, "accuracy"),
            from_zero=True,
        ),
        *charts,
        chart("Contrastive loss", "nats", metric(runs, "loss")),
    ]


def loss_charts(runs: list[Run]) -> list[Markup | None]:
    """One run: its sources in one chart. Several: a chart a source with the runs in it."""
    unit = "nats per scored token"
    sources = sorted(
        {source for run in runs for line in run.steps for source in line.get("loss_by_source", {})}
        | {source for run in runs for line in run.validations for source in line["validation"]}
    )
    if len(runs) == 1:
        (run,) = runs
        training = [loss_of(run, source, source, i) for i, source in enumerate(sources)]
        held_out = [validated(run, source, source, i) for i, source in enumerate(sources)]
        bits = [validated(run, source, source, i, BITS) for i, source in enumerate(sources)]
        return [
            chart("Training loss by source", unit, training),
            chart("Validation loss by source", unit + ", held-out documents", held_out),
            chart("Validation, bits per byte by source", BITS_UNIT, bits),
        ]
    whole = chart("Loss on all sources", unit, metric(runs, "loss"))
    by_source = [
        chart(
            f"Loss on {source}",
            unit,
            [loss_of(run, source, run.label, run.color) for run in runs]
            + [validated(run, source, run.label, run.color) for run in runs],
        )
        for source in sources
    ]
    bits_by_source = [
        chart(
            f"Bits per byte on {source}",
            BITS_UNIT,
            [validated(run, source, run.label, run.color, BITS) for run in runs],
        )
        for source in sources
    ]
    return [whole if len(sources) > 1 else None, *by_source, *bits_by_source]


def loss_of(run: Run, source: str, label: str, color: int) -> Series:
    points = ((line["step"], line.get("loss_by_source", {}).get(source)) for line in run.steps)
    return series(label, points, color)


def wait_share(line: dict[str, Any]) -> float | None:
    """% of the time from one step to the next that was waiting for data."""
    step, wait = line.get("step_seconds"), line.get("data_wait_seconds")
    return 100 * wait / (step + wait) if step and wait is not None else None


def skipped_steps(run: Run) -> list[int]:
    return [line["step"] for line in run.steps if line.get("applied") is False]


def engine_charts(runs: list[Run]) -> list[Markup | None]:
    waits = [
        series(run.label, ((line["step"], wait_share(line)) for line in run.steps), run.color)
        for run in runs
    ]
    skipped = [series(run.label, ((s, 0) for s in skipped_steps(run)), run.color) for run in runs]
    return [
        chart(
            "Useful throughput",
            "positions per second, padding left out",
            metric(runs, "useful_tokens_per_second"),
            from_zero=True,
        ),
        chart(
            "Throughput",
            "positions per second",
            metric(runs, "tokens_per_second"),
            from_zero=True,
        ),
        chart(
            "Throughput of the vision stage",
            "pictures per second",
            metric([run for run in runs if run.is_vision], "images_per_second"),
            from_zero=True,
        ),
        chart("Waiting for data", "% of the step's time", waits, from_zero=True),
        chart(
            "Gradient norm",
            "before clipping",
            metric(runs, "grad_norm"),
            marks=("skipped step", skipped),
            from_zero=True,
        ),
        chart("Learning rate", "of the first parameter group", metric(runs, "lr"), from_zero=True),
        *(chart(title, unit, metric(runs, key), from_zero=True) for key, title, unit in FURTHER),
    ]
