"""The parts of the page about training: how, curves, corpus, times, limits, settings."""

from collections.abc import Iterable
from typing import Any

from mllm.report.curves import Series, chart, series
from mllm.report.inputs import Export, Run, Times
from mllm.report.markup import Markup, duration, h, join, number, table
from mllm.report.scores import Cell

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
                "text (a token) after any mix of text and pictures. This is the architecture of "
                "KOSMOS-1, here trained from random numbers: nothing was pre-trained elsewhere.",
            ),
            h("ol", [h("li", stage_words(run)) for run in runs]) if runs else None,
            run_table(runs) if runs else None,
            model_words(export) if export else None,
            [mixture_table(run) for run in runs if run.tokens_by_source],
            [dropped_table(run) for run in runs if run.dropped],
        ]
    )


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
    return [name, f": the whole model {what}{material}{size}. {progress(run).capitalize()}.{begun}"]


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
                f"{tokens / 1e6:.2f} million" if tokens else "–",
                number(end, 3),
                ", ".join(validations) or "–",
                duration(run.seconds) if run.seconds else "–",
                f"{skipped:,}",
                f"{sum(run.dropped.values()):,}",
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


def dropped_table(run: Run) -> Markup:
    rows = [[reason, f"{count:,}"] for reason, count in run.dropped.most_common()]
    return join(
        [h("h3", f"Set aside in {run.label}"), table(["Reason", "Count"], rows, numeric=(1,))]
    )


def share_bar(share: float) -> Markup:
    return h(
        "span",
        h("span", h("i", style=f"width:{100 * share:.1f}%"), class_="bar"),
        h("span", f"{100 * share:.1f} %", class_="value"),
        class_="share",
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
    return join([h("p", note), parts])


def metric(runs: list[Run], key: str) -> list[Series]:
    """One curve a run of a per-step metric."""
    return [
        series(run.label, ((line["step"], line.get(key)) for line in run.steps), run.color)
        for run in runs
    ]


def validated(run: Run, key: str, label: str, color: int) -> Series:
    points = ((line["step"], line["validation"].get(key)) for line in run.validations)
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
        return [
            chart("Training loss by source", unit, training),
            chart("Validation loss by source", unit + ", held-out documents", held_out),
        ]
    return [
        chart(
            f"Loss on {source}",
            unit,
            [
                curve
                for run in runs
                for curve in (
                    loss_of(run, source, run.label, run.color),
                    validated(run, source, run.label, run.color),
                )
            ],
        )
        for source in sources
    ]


def loss_of(run: Run, source: str, label: str, color: int) -> Series:
    points = ((line["step"], line.get("loss_by_source", {}).get(source)) for line in run.steps)
    return series(label, points, color)


def wait_share(line: dict[str, Any]) -> float | None:
    """% of the time from one step to the next that was waiting for data."""
    step, wait = line.get("step_seconds"), line.get("data_wait_seconds")
    return 100 * wait / (step + wait) if step and wait is not None else None


def engine_charts(runs: list[Run]) -> list[Markup | None]:
    waits = [
        series(run.label, ((line["step"], wait_share(line)) for line in run.steps), run.color)
        for run in runs
    ]
    return [
        chart(
            "Throughput",
            "positions per second, padding left out",
            metric(runs, "useful_tokens_per_second"),
            from_zero=True,
        ),
        chart(
            "Throughput of the vision stage",
            "pictures per second",
            metric(runs, "images_per_second"),
            from_zero=True,
        ),
        chart("Waiting for data", "% of the step's time", waits, from_zero=True),
        chart("Gradient norm", "before clipping", metric(runs, "grad_norm"), from_zero=True),
        chart("Learning rate", "of the first parameter group", metric(runs, "lr"), from_zero=True),
    ]


CORPUS_TITLES = {
    "counts": "Samples by corpus and source",
    "captions": "Captions: length and diversity",
    "dropped": "Left out while building, by reason",
    "concepts": "Concepts by use",
    "packages": "Where it came from",
}
FOLDED = ("fingerprint", "settings")  # shown among the settings


def corpus_section(report: dict[str, Any]) -> Markup:
    """The corpus' own report, whatever it counts: tables of numbers, records, single values."""
    return join(
        describe(CORPUS_TITLES.get(key, words(key)), value)
        for key, value in report.items()
        if key not in FOLDED
    )


def describe(title: str, value: Any) -> Markup:
    """Numbers by name and records become tables; long lists are folded; the rest is a line."""
    heading = h("h3", title)
    if isinstance(value, dict) and value:
        if all(isinstance(item, dict) for item in value.values()):
            return join([heading, group_table(value)])
        return join(
            [heading, table(["", "Value"], [[words(k), short(v)] for k, v in value.items()])]
        )
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return join([heading, record_table(value)])
    if isinstance(value, list) and len(value) > 12:
        items = h("p", ", ".join(short(item) for item in value))
        return join([heading, h("details", h("summary", f"{len(value):,} entries"), items)])
    return h("p", h("strong", title + ": "), short(value))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def words(key: str) -> str:
    text = key.replace("_", " ")
    return text[:1].upper() + text[1:]


def short(value: Any) -> str:
    """A value in a cell: numbers with separators, nested things as `key value` lists."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{words(str(k)).lower()} {short(v)}" for k, v in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(short(item) for item in value) or "–"
    return "–" if value is None else str(value)


def group_table(groups: dict[str, dict[str, Any]]) -> Markup:
    """One line a group: its sum where it counts things, and its parts."""
    rows = []
    for name, parts in groups.items():
        counted = all(isinstance(item, int) for item in parts.values())
        total = f"{sum(parts.values()):,}" if counted else "–"
        rows.append([name, total, ", ".join(f"{k} {short(v)}" for k, v in parts.items())])
    return table(["", "Count", "Of which"], rows, numeric=(1,))


def record_table(records: list[dict[str, Any]]) -> Markup:
    """Records with the same keys; hashes are left to the settings."""
    columns = [key for key in dict.fromkeys(k for r in records for k in r) if key != "sha256"]
    rows = [[short(record.get(key)) for key in columns] for record in records]
    return table([words(key) for key in columns], rows)


def times_section(times: Times) -> Markup:
    total = sum(seconds for _, seconds in times.steps)
    rows = [
        [step, duration(seconds), share_bar(seconds / total if total else 0.0)]
        for step, seconds in times.steps
    ]
    rows.append([h("strong", "Whole"), h("strong", duration(total)), ""])
    names = {"probe_bf16_gflops": "bf16", "probe_fp32_gflops": "fp32"}
    probes = ", ".join(
        f"{names.get(name, name)} {value:,.0f} GFLOP/s" for name, value in times.probes.items()
    )
    return join(
        [
            table(["Step", "Wall time", "Share"], rows, numeric=(1,)),
            h("p", f"Matrix products on this machine when it ran: {probes}.", class_="note")
            if probes
            else None,
        ]
    )


GENERAL_LIMITS = (
    "One training run, one seed: another run differs by more than the ± figures, which cover only "
    "which pictures were asked about.",
    "A model of this size has no world knowledge to speak of. Text that reads well can be wrong.",
    "Nothing here was checked for safety or bias; it is not meant for use on people.",
)
DEMO_LIMITS = (
    "The pictures are emoji, flags and drawn shapes. There are about 60 natural photographs in "
    "reach of the demo and none of them trains it: expect nothing on photographs.",
    "Captions are made from names, keywords and groups, so a caption score rewards the right name "
    "and the right pattern. Nothing here compares with published COCO or VQAv2 figures.",
    "“Unseen artwork” means a known concept drawn by an artist who was held out whole. The harder "
    "test, concepts never seen at all, is a row of its own.",
    "Naming is a choice among five names, not free naming among all of them.",
    "Even a perfect model shown the wrong picture gets about 58 % on easy-vqa, and the best answer "
    "from the question alone 67 %: only what is above that was seen.",
    "Steps, learning rates and prompts were chosen on development halves only.",
)


def limits_section(cells: list[Cell]) -> Markup:
    is_demo = any(cell["suite"] in ("naming", "easy_vqa") for cell in cells)
    return h("ul", [h("li", line) for line in (*(DEMO_LIMITS if is_demo else ()), *GENERAL_LIMITS)])


def flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """(dotted key, value) of nested settings; lists of plain values stay whole."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        items = enumerate(value)
    else:
        yield prefix, str(value)
        return
    for key, item in items:
        yield from flat(item, f"{prefix}.{key}" if prefix else str(key))


def settings_details(title: str, value: Any) -> Markup:
    rows = [[h("code", key), h("code", text)] for key, text in flat(value)]
    return h("details", h("summary", title), table(["Key", "Value"], rows))


def settings_section(
    runs: list[Run], results: list[tuple[str, dict[str, Any]]], corpus_report: dict[str, Any] | None
) -> Markup:
    """Every setting and fingerprint, folded: enough to tell two pages apart."""
    prints = [[f"stream of {run.label}", (run.stream or {}).get("fingerprint")] for run in runs]
    prints += [["corpus", (corpus_report or {}).get("fingerprint")]]
    prints += [[f"model scored in {name}", r.get("model_fingerprint")] for name, r in results]
    known = [[what, h("code", str(value))] for what, value in prints if value]
    folded = [
        settings_details(f"Settings of {run.label}", run.config) for run in runs if run.config
    ]
    folded += [settings_details(f"Stream of {run.label}", run.stream) for run in runs if run.stream]
    for name, result in results:
        if result.get("versions"):
            folded.append(settings_details(f"Versions used by {name}", result["versions"]))
        asked = {
            f"{c['suite']} {c.get('split') or ''} k={c['num_shots']}": c.get("settings", {})
            for c in result["cells"]
        }
        folded.append(settings_details(f"How {name} asked", asked))
    for key in ("settings", "packages"):
        if corpus_report and key in corpus_report:
            folded.append(settings_details(f"{words(key)} of the corpus", corpus_report[key]))
    return join([table(["Of", "Fingerprint"], known) if known else None, folded])
