"""How it was trained: stages in words, runs in a table, what each read and set aside."""

from typing import Any

from mllm.report.curves import series
from mllm.report.inputs import Export, Run
from mllm.report.markup import Markup, duration, h, is_number, join, number, share_bar, table

TAIL_SHARE = 20  # the last 1/20 of the steps is "the end of training"


def tail_mean(run: Run, key: str) -> float | None:
    """Mean of a metric over the last twentieth of the run."""
    values = series(key, ((line["step"], line.get(key)) for line in run.steps)).values
    return float(values[-max(len(values) // TAIL_SHARE, 1) :].mean()) if len(values) else None


def progress(run: Run) -> str:
    """`500 steps`, or how far a run that is not finished has come."""
    if run.last_step is None:
        return "no step yet"
    done, planned = run.last_step, run.setting("train.num_steps")
    if isinstance(planned, int) and done < planned:
        return f"{done:,} of {planned:,} steps so far"
    return f"{done:,} steps"


def training_section(runs: list[Run], export: Export | None) -> Markup:
    """What was trained, in what order and on how much, in plain words."""
    return join(
        [
            h(
                "p",
                "A vision encoder turns a picture into a few vectors, which take places among the "
                "word vectors of a text decoder; the decoder learns to predict the next piece of "
                "text (a token) after any mix of text and pictures. ",
                architecture_words(runs),
                "A stage starts from random numbers unless said to begin with other weights.",
            ),
            h("ol", [h("li", stage_words(run)) for run in runs]) if runs else None,
            run_table(runs) if runs else None,
            model_words(export) if export else None,
            [mixture_table(run) for run in runs if run.tokens_by_source],
        ]
    )


def architecture_words(runs: list[Run]) -> str | None:
    """How the decoder's run departs from KOSMOS-1, where its configuration says."""
    run = next((run for run in runs if not run.is_vision and run.setting("model.position")), None)
    if run is None:
        return None
    departures = []
    if run.setting("model.position") != "xpos":
        departures.append(f"{run.setting('model.position')} positions in place of xPos")
    if run.setting("model.vision.normalise_features") is False:
        departures.append("picture features not brought to length one")
    but = f", but for {' and '.join(departures)}" if departures else ""
    return f"This is the architecture of KOSMOS-1{but}. "


def stage_words(run: Run) -> list[Any]:
    name = h("strong", run.label)
    batch = run.setting("train.global_batch_size")
    if run.is_vision:
        size = f", {batch} pairs at a time" if batch else ""
        return [
            name,
            f": the vision encoder learnt to match pictures with their captions{size}: "
            f"each picture against every caption of the batch. {progress(run).capitalize()}.",
        ]
    seq_len, stage = run.setting("model.seq_len"), run.setting("stage")
    size = f", {batch} rows of {seq_len} positions a step" if batch and seq_len else ""
    start = run.setting("init_from")
    begun = f" It began with the weights of {start}." if start else ""
    what = "followed instructions" if stage == "instruct" else "learnt to predict text"
    sources = ", ".join(run.tokens_by_source)
    material = f" from {sources}" if sources else ""
    return [name, f": the model {what}{material}{size}. {progress(run).capitalize()}.{begun}"]


def run_table(runs: list[Run]) -> Markup:
    rows = []
    for run in runs:
        skipped = sum(line.get("applied") is False for line in run.steps)
        tokens = sum(run.tokens_by_source.values())
        end = tail_mean(run, "loss")
        validations = [
            f"{source.replace('_', ' ')} {value:.3f}"
            for source, value in (
                run.validations[-1]["validation"] if run.validations else {}
            ).items()
            if isinstance(value, int | float)
        ]
        rows.append(
            [
                h("strong", run.label),
                h("span", progress(run), class_="progress"),
                f"{tokens:,}" if tokens else "–",
                number(end, 3),
                ", ".join(validations) or "–",
                duration(run.seconds) if run.seconds else "–",
                f"{skipped:,}",
                f"{len(run.ledger):,}",
            ]
        )
    columns = ["Run", "Progress", "Scored tokens", "Loss at the end", "Last validation"]
    columns += ["Time in steps", "Skipped steps", "Ledger lines"]
    return table(columns, rows, numeric=(2, 3, 5, 6, 7))


def model_words(export: Export) -> Markup:
    total = sum(export.parameters.values())
    parts = ", ".join(
        f"{part.replace('_', ' ')} {count / 1e6:.2f}"
        for part, count in sorted(export.parameters.items(), key=lambda item: -item[1])
    )
    return h(
        "p",
        f"The exported model has {total / 1e6:.1f} million parameters ({parts}; in millions) and "
        f"takes {export.num_bytes / 1e6:.0f} MB. Talk to it with ",
        h("code", f"mllm chat --model {export.path}"),
        ".",
    )


def mixture_table(run: Run) -> Markup:
    tokens = run.tokens_by_source
    total = sum(tokens.values()) or 1
    sources = [item for item in run.setting("data.mixture") or [] if isinstance(item, dict)]
    weights = {item["name"]: item["weight"] for item in sources if is_number(item.get("weight"))}
    asked = {name: f"{100 * w / sum(weights.values()):.1f} %" for name, w in weights.items()}
    rows = [
        [source, f"{count:,}", share_bar(count / total), asked.get(source, "–")]
        for source, count in sorted(tokens.items(), key=lambda item: -item[1])
    ]
    columns = ["Source", "Scored tokens", "Share", "Weight"]
    unit = "rows" if run.setting("data.unit") == "rows" else "image positions and scored tokens"
    note = f"Scored tokens are those the model had to predict. Weights are shares of {unit}."
    body = table(columns, rows, numeric=(1, 3))
    return join([h("h3", f"What {run.label} read"), body, h("p", note, class_="note")])
