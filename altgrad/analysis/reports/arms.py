"""The runs: an index of arms, and a page for each arm with an anchor for each of its runs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from altgrad.analysis.comparison import FormatComparator, format_order
from altgrad.analysis.loader import NOT_STATED, OPERAND_NAMES, ExperimentDataLoader
from altgrad.analysis.reports import common
from altgrad.analysis.statistics import mean_interval
from altgrad.config import ExperimentConfig
from altgrad.pages import (
    FOREGROUND,
    MUTED,
    PALETTE,
    Block,
    Chart,
    ChartBlock,
    CodeBlock,
    Column,
    Heading,
    Link,
    Md,
    Page,
    Paragraph,
    Table,
    code,
    md,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEALTH = ("amax", "scale", "overflow", "underflow", "sqnr_db", "stall_ratio")


def arm_pages(loader: ExperimentDataLoader) -> list[Page]:
    """The index of arms, then a page for each arm."""
    arms = list(loader.runs.groupby("arm", sort=True))
    return [_index(loader, arms), *(_arm_page(loader, str(arm), runs) for arm, runs in arms)]


def _index(loader: ExperimentDataLoader, arms: list[tuple[Any, pd.DataFrame]]) -> Page:
    rows, records = [], []
    for arm, runs in sorted(arms, key=lambda item: (format_order(item[1]["format"].iloc[0]), item[0])):
        reporting = runs[runs["role"] == "report"]
        losses = (runs if reporting.empty else reporting)["final_val_loss"].dropna()
        estimate = mean_interval(losses.to_numpy())
        first = runs.iloc[0]
        records.append(
            {
                "arm": arm,
                "format": first["format"],
                "scope": first["scope"],
                "rule": first["rule"],
                "learning_rate": first["learning_rate"],
                "max_steps": first["max_steps"],
                "runs": len(runs),
                "finished": int((runs["status"] == "finished").sum()),
                "val_loss": estimate.mean,
                "low": estimate.low,
                "high": estimate.high,
                "studies": ", ".join(sorted(runs["study"].unique())),
            }
        )
        record = records[-1]
        rows.append(
            (
                common.arm_link(str(arm)),
                record["format"],
                record["scope"],
                record["rule"],
                _rate(record["learning_rate"]),
                int(record["max_steps"]),
                common.number(estimate.mean),
                "none" if estimate.n < 2 else f"[{estimate.low:.3f}, {estimate.high:.3f}]",
                f"{record['finished']} of {record['runs']}",
                record["studies"],
            )
        )
    columns: tuple[Column | str, ...] = (
        "Arm",
        "Format",
        "Quantized",
        "Step rule",
        *common.right("Learning rate", "Steps", "Validation loss", "95% interval", "Finished"),
        Column("Studies"),
    )
    intro = (
        "An arm is one config with all its seeds. Validation loss: mean over finished runs (tuning seeds only where "
        "an arm has no others), nats a character, "
        "deployed weights; these unpaired "
        "means vary with the seeds of each arm, so compare arms by the paired gaps of the reports."
    )
    blocks: list[Block] = [common.data_line(loader), *common.left_out(loader), Paragraph(intro)]
    if rows:
        blocks.append(Table(columns, tuple(rows), f"{len(rows)} arms", data=pd.DataFrame(records), id="arms"))
    else:
        blocks += common.pending("No runs are recorded.", ["demo"])
    return Page(
        "runs/index", "Runs", tuple(blocks), "Every recorded arm with its seeds.", provenance=common.provenance(loader)
    )


def _arm_page(loader: ExperimentDataLoader, arm: str, runs: pd.DataFrame) -> Page:
    first = runs.iloc[0]
    config = loader.config(arm)
    title = (
        f"{first['format']}, {first['rule']}, learning rate {_rate(first['learning_rate'])}, {first['max_steps']} steps"
    )
    if config.foreign is not None:
        title = f"{config.resolved_name}, a run of another loop: format {first['format']}, {first['max_steps']} steps"
    baseline = _baseline(loader, runs)
    chart = _curves(loader, runs, baseline)
    blocks: list[Block] = [
        Paragraph(f"Quantized: {first['scope']}. Studies: {', '.join(sorted(runs['study'].unique()))}."),
        *([ChartBlock(chart)] if chart else [Paragraph("No run of this arm recorded a validation loss.")]),
        *([Paragraph(_baseline_note(baseline))] if baseline else []),
        *(_foreign_config(config) if config.foreign is not None else _own_config(config)),
        *_foreign_comparison(loader, arm),
        *_health(loader, runs),
        Heading("Runs"),
    ]
    for run in runs.itertuples():
        blocks += _run_section(loader, run)
    return Page(
        f"runs/{arm}",
        title,
        tuple(blocks),
        f"Recorded runs of {title}.",
        search=False,
        provenance=common.provenance(loader),
    )


def _own_config(config: ExperimentConfig) -> list[Block]:
    difference = _difference(config)
    return [
        Heading("Config"),
        Paragraph("What differs from the default config (fp32, AdamW):"),
        CodeBlock(yaml.safe_dump(difference, sort_keys=False) if difference else "# nothing\n", "yaml"),
        Heading("Run it again"),
        CodeBlock(command(config), "bash"),
    ]


def _foreign_config(config: ExperimentConfig) -> list[Block]:
    """The keys that another loop gave, in a table: they are that loop's text, and no YAML of ours."""
    stated = {key: value for key, value in config.arm_identity().items() if key != "foreign"}
    rows = [(key, _scalar(value), "AltGrad's") for key, value in _flat(stated)]
    rows += [(key, _scalar(value), "the loop's own") for key, value in (config.foreign or {}).items()]
    text = (
        "This run comes from a training loop that is not AltGrad's. Keys that AltGrad has are read as its own; the "
        "others are kept as they were given. What is not listed is not known."
    )
    return [Heading("Config"), Paragraph(text), Table(("Key", "Value", "Whose key"), tuple(rows), id="config")]


def _foreign_comparison(loader: ExperimentDataLoader, arm: str) -> list[Block]:
    """The formats that another loop recorded in this arm's setting, against its unquantized runs."""
    found = (
        each
        for each in FormatComparator(loader, foreign=True).comparisons
        if arm in (each.baseline, *each.table["arm"])
    )
    blocks: list[Block] = []
    for comparison in found:
        rows = tuple(
            (
                common.arm_link(row["arm"], row["format"]),
                common.number(row["val_loss"], 4),
                common.number(row["gap"], 4, sign=True),
                common.interval(row["low"], row["high"], 4),
                int(row["n_pairs"]),
                f"{row['n_finished']} of {row['n_runs']}",
            )
            for row in comparison.table.to_dict("records")
        )
        columns: tuple[Column | str, ...] = (
            "Format",
            *common.right("Validation loss", "Gap", "95% interval", "Pairs", "Finished"),
        )
        caption = md(
            "{scope} quantized, everything else equal: the gap of the final val_loss to {baseline}, paired by seed",
            scope=comparison.scope.capitalize(),
            baseline=common.arm_link(comparison.baseline, "the unquantized runs"),
        )
        blocks.append(Table(columns, rows, caption, data=comparison.table, id=f"formats-{comparison.setting}"))
    return [Heading("Formats compared"), *blocks] if blocks else []


def command(config: ExperimentConfig) -> str:
    """The command that runs `config` again, from the default config and what differs from it."""
    sets = [
        f"--set {shlex.quote(f'{key}={_scalar(value)}')}" for key, value in _flat(_difference(config)) if key != "seed"
    ]
    head = ".venv/bin/python experiments/run_experiment.py experiments/configs/fp32.yaml"
    return " \\\n  ".join([head, *sets, f"--seed {config.seed}"])


def _run_section(loader: ExperimentDataLoader, run: Any) -> list[Block]:
    record = loader.records[run.run_id]
    environment, failure = record.run["environment"], record.run["failure"]
    rows: list[tuple[str, Any]] = [
        ("Status", run.status),
        ("Seed", int(run.seed)),
        ("Study", f"{run.study} (held out of comparisons)" if run.role == "tuning" else run.study),
        ("Final validation loss", common.number(run.final_val_loss, 4)),
        ("Last recorded step", int(run.last_step)),
        ("Recorded", common.moment(run.created)),
        ("Seconds", common.number(record.run.get("seconds") or float("nan"), 1)),
        (
            "Code",
            f"altgrad {record.run['code'].get('version', '?')}, fingerprint "
            f"{record.run['code'].get('fingerprint', '?')}",
        ),
        ("Training data", f"{record.run['data'].get('name', 'unnamed')}, sha256 {record.run['data']['sha256'][:12]}"),
        ("Environment", ", ".join(f"{key} {value}" for key, value in sorted(environment.items())) or "not recorded"),
        ("W&B", Link("W&B run", run.wandb_url) if isinstance(run.wandb_url, str) else "recorded without W&B"),
    ]
    if isinstance(failure, dict):
        text = (
            f"{', '.join(map(str, failure.get('kinds', [])))} at step {failure.get('step')}, "
            f"{failure.get('tensor') or 'tensor not known'}, {failure.get('phase') or 'phase not known'}: "
            f"{failure.get('message', '')}"
        )
        rows.insert(1, ("Failure", text))
    if record.run.get("message"):
        rows.insert(1, ("Message", str(record.run["message"])))
    notes = record.config.notes
    if notes:
        rows.append(("Notes", notes))
    if origin := record.run.get("origin"):
        where = "/".join(str(origin.get(key)) for key in ("entity", "project", "id"))
        rows.append(("Made from W&B", f"{where}, {common.moment(origin.get('pulled'))}"))
        rows += [("Read from W&B", str(line)) for line in origin.get("report", [])]
    rows += [
        (f"Event at step {event.get('step')}", str(event.get("kind")))
        for event in record.run["events"]
        if isinstance(event, dict)
    ]
    return [
        Heading(code(run.run_id), 3, run.run_id),
        Table(("Field", "Value"), tuple(rows), caption=f"Run {run.run_id}"),
    ]


def _curves(loader: ExperimentDataLoader, runs: pd.DataFrame, baseline: str | None) -> Chart | None:
    frames = []
    for role, chosen in (("arm", runs), ("baseline", loader.runs[loader.runs["arm"] == baseline])):
        for run in chosen.itertuples():
            history = loader.history(run.run_id)
            if "val_loss" in history and history["val_loss"].notna().any():
                losses = history.dropna(subset=["val_loss"])
                frames.append(
                    pd.DataFrame(
                        {"run_id": run.run_id, "role": role, "step": losses["step"], "val_loss": losses["val_loss"]}
                    )
                )
    data = common.finite_rows(pd.concat(frames, ignore_index=True), "val_loss") if frames else pd.DataFrame()
    if data.empty:
        return None
    foreign = bool(runs["foreign"].iloc[0])

    def draw(axes: Axes) -> None:
        for _, group in data[data["role"] == "baseline"].groupby("run_id"):
            axes.plot(group["step"], group["val_loss"], color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        own = data[data["role"] == "arm"]
        for _, group in own.groupby("run_id"):
            axes.plot(group["step"], group["val_loss"], color=PALETTE[0], linewidth=1.4, marker="o", markersize=2.5)
        axes.set_xlabel("step")
        axes.set_ylabel("val_loss" if foreign else "validation loss (nats a character)")
        note = f"solid: the {own['run_id'].nunique()} runs of this arm" + (
            "; dashed: FP32 baseline" if baseline else ""
        )
        axes.annotate(note, (0.99, 0.97), xycoords="axes fraction", ha="right", va="top", color=FOREGROUND)

    last = data[data["role"] == "arm"].groupby("run_id").tail(1)["val_loss"]
    description = f"Validation loss by step for each run; last values from {last.min():.3f} to {last.max():.3f}."
    return Chart("loss", "Validation loss", description, data, draw)


def _baseline(loader: ExperimentDataLoader, runs: pd.DataFrame) -> str | None:
    """The unquantized arm to draw behind this one: of the same setting, else of the same data, model and length."""
    first = runs.iloc[0]
    free = loader.runs[
        (loader.runs["scope"] == "nothing") & (loader.runs["role"] == "report") & (loader.runs["arm"] != first["arm"])
    ]
    same = free[free["setting"] == first["setting"]]
    if len(same):
        return str(same["arm"].iloc[0])
    if first["scope"] == "nothing" or first["foreign"]:
        return None
    model = loader.config(str(first["arm"])).model
    near = [
        run
        for run in free.itertuples()
        if (run.data, run.max_steps, run.foreign) == (first["data"], first["max_steps"], False)
        and loader.config(run.arm).model == model
    ]
    return str(near[0].arm) if near else None


def _baseline_note(baseline: str) -> Md:
    return md("Baseline in the chart: {arm}.", arm=common.arm_link(baseline))


def _health(loader: ExperimentDataLoader, runs: pd.DataFrame) -> list[Block]:
    frames = []
    for run in runs.itertuples():
        layers = loader.layers(run.run_id)
        if len(layers):
            frames.append(layers[(layers["step"] == layers["step"].max()) & layers["statistic"].isin(HEALTH)])
    if not frames:
        return []
    keys = ["layer", "layer_type", "operand"]
    wide = pd.concat(frames).pivot_table(index=keys, columns="statistic", values="value", observed=True).reset_index()
    columns = [name for name in HEALTH if name in wide]
    rows = tuple(
        (
            row["layer"],
            row["layer_type"],
            OPERAND_NAMES.get(row["operand"], row["operand"]),
            *(
                common.percent(row[name])
                if name in ("overflow", "underflow", "stall_ratio")
                else f"{row[name]:.4g}"
                if pd.notna(row[name])
                else None
                for name in columns
            ),
        )
        for row in wide.to_dict("records")
    )
    caption = (
        f"Mean over {len(frames)} runs at their last recorded step; overflow and underflow as fractions of "
        "nonzero elements"
    )
    titles = {"sqnr_db": "SQNR (dB)", "stall_ratio": "Stall ratio"}
    table = Table(
        ("Layer", "Type", "Operand", *common.right(*(titles.get(name, name.capitalize()) for name in columns))),
        rows,
        caption,
        data=wide,
        id="health",
    )
    return [Heading("Health of the layers"), table]


def _difference(config: ExperimentConfig) -> dict[str, Any]:
    """What `config` sets otherwise than the defaults, nested as in YAML; bookkeeping keys left out."""
    default = ExperimentConfig().identity()

    def differing(own: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for key, value in own.items():
            if isinstance(value, dict):
                value = differing(value, base.get(key, {}))
                if value:
                    found[key] = value
            elif key not in base or value != base[key]:
                found[key] = value
        return found

    return {key: value for key, value in differing(config.identity(), default).items() if key != "seed"}


def _flat(nested: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat = []
    for key, value in nested.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return flat


def _rate(value: float) -> str:
    return f"{value:g}" if pd.notna(value) else NOT_STATED


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
