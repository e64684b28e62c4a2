"""`atoll plan`: what a run would cost on a fleet, before anything is started."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from atoll.cli.places import cache_directory
from atoll.cli.show import console
from atoll.config import RunConfig, load_run_config
from atoll.durable import disk_errors
from atoll.errors import ConfigError
from atoll.model.accounting import flops_per_token
from atoll.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:  # the codecs take a second to load, which --help need not wait for
    from atoll.forecast.fleet import FleetConfig
    from atoll.forecast.forecast import Forecast, GroupForecast

WIDE = 100  # columns: with so many there is room for places


def _print_example(wanted: bool) -> None:
    if wanted:
        from atoll.forecast.fleet import example
        from atoll.tables import template

        console.say(template(example()), end="")
        raise typer.Exit


def plan(
    run: Annotated[Path, typer.Argument(help="The run.toml, or the run's directory.")],
    fleet: Annotated[
        Path | None,
        typer.Option(help="The machines: a fleet.toml, see --example.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw a round of it into this file, as SVG.")
    ] = None,
    _example: Annotated[
        bool,
        typer.Option(
            "--example",
            help="Print a fleet.toml to start from.",
            callback=_print_example,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Predict rounds, bytes, memory and joiners of a run on a fleet, and say what will hurt."""
    from atoll.forecast.concerns import concerns
    from atoll.forecast.fleet import load_fleet
    from atoll.forecast.forecast import forecast
    from atoll.model.peaks import own_peak_flops

    config = load_run_config(run / "run.toml" if run.is_dir() else run)
    if fleet is None:
        raise ConfigError(
            "on which machines? a file names them: --fleet fleet.toml",
            hint="write one to start from: atoll plan --example > fleet.toml",
        )
    machines = load_fleet(fleet, own_peak_flops=own_peak_flops(cache_directory()))
    if plot is not None and plot.suffix != ".svg":
        raise ConfigError(f"--plot {plot}: not the name of an SVG file", hint="end it in .svg")
    seen = forecast(config, machines)
    warnings = concerns(config, machines, seen)
    if plot is not None:
        _draw(plot, config, seen)
    if json:
        found = {**msgspec.to_builtins(seen), "concerns": warnings}
        console.print_json(msgspec.json.encode(found).decode())
    else:
        _print_run(config, seen)
        _print_groups(machines, seen)
        _print_concerns(warnings)


def _draw(path: Path, config: RunConfig, seen: "Forecast") -> None:
    from atoll.cli.plan_plot import drawing

    with disk_errors(path):
        path.write_text(drawing(seen, overlaps=config.sync.mode == "overlap"), encoding="utf-8")


def _print_run(config: RunConfig, seen: "Forecast") -> None:
    sync = config.sync
    length = config.data.sequence_length
    parts = f", {sync.fragments} fragments" if sync.fragments > 1 else ""
    facts = (
        ("run", f"{seen.run}, {format_count(seen.num_values)} parameters, {seen.num_peers} peers"),
        ("sync", f"{sync.mode}, {sync.codec} / {sync.update_codec}, H = {sync.inner_steps}{parts}"),
        (
            "round",
            f"{format_seconds(seen.round_s)}, with {format_seconds(seen.exchange_s)} of exchange",
        ),
        ("all", f"{sync.rounds} rounds in {format_seconds(seen.total_s)}"),
        ("trains", f"{seen.utilisation:.1%} of the time, mean of the peers"),
        ("speed", f"{format_count(seen.tokens_per_s)} tokens/s"),
        (
            "work",
            f"{format_count(flops_per_token(config.model, sequence_length=length))} operations "
            f"for each token, attention to {length} tokens included",
        ),
        ("bits", f"{seen.bits:.3f} sent for each parameter and inner step"),
        (
            "host",
            f"receives {format_bytes(seen.host.down_bytes)} and sends "
            f"{format_bytes(seen.host.up_bytes)} in a round",
        ),
        (
            "joiner",
            f"fetches {format_bytes(seen.state_bytes)}, {format_bytes(seen.source_bytes)} of it "
            "from each who can be dialled",
        ),
    )
    for title, text in facts:
        console.say(f"{title:<8} {text}")


def _print_groups(fleet: "FleetConfig", seen: "Forecast") -> None:
    _print_table(
        ("group", "peers", "step", "steps", "send", "fetch", "trains", "in roster"),
        [_times(group) for group in seen.groups],
    )
    _print_table(
        ("group", "sends", "receives", "at once", "device", "machine", "joins"),
        [_sizes(group) for group in seen.groups],
    )
    assumed = ", ".join(f"{group.mfu:.0%} ({group.name})" for group in fleet.groups)
    notes = [
        "steps, send, fetch: of a round; in roster: of which rounds",
        "at once: samples; device, machine: memory needed / there; joins: until one more trains",
        f"assumed: of the peak of a device training reaches {assumed}",
    ]
    from atoll.forecast.forecast import FP8_SPEED

    if any(group.precision == "fp8" for group in fleet.groups):
        notes.append(f"assumed: products in 8 bits are {FP8_SPEED:g} times as fast as in bf16")
    console.print("\n" + "\n".join(notes), markup=False, style="dim")


def _name(group: "GroupForecast") -> str:
    is_told = group.place and console.width >= WIDE
    return f"{group.name} ({group.place})" if is_told else group.name


def _times(group: "GroupForecast") -> tuple[str, ...]:
    rounds = "all" if group.every == 1 else f"1 in {group.every}"
    return (
        _name(group),
        str(group.count),
        _short(group.step_s),
        _short(group.steps_s),
        _short(group.send_s),
        _short(group.fetch_s),
        f"{group.utilisation:.0%}",
        rounds if group.memory.fits else "too small",
    )


def _sizes(group: "GroupForecast") -> tuple[str, ...]:
    memory = group.memory
    return (
        _name(group),
        format_bytes(group.up_bytes),
        format_bytes(group.down_bytes),
        str(memory.micro_batch),
        "-" if memory.device_has is None else _of(memory.device, memory.device_has),
        _of(memory.host, memory.host_has),
        "never" if group.joins_s is None else _short(group.joins_s),
    )


def _of(needed: int, there: int) -> str:
    sizes = (f"{size / 1e9:.{2 if size < 1e10 else 0}f}" for size in (needed, there))
    return f"{' / '.join(sizes)} GB"


def _short(seconds: float) -> str:
    """Return a duration in one unit, for a column: `4.2 s`, `3.3 min`, `2.1 h`, `12 d`."""
    for unit, size_s in (("s", 60), ("min", 60), ("h", 48)):
        if seconds < size_s:
            return f"{seconds:.1f} {unit}"
        seconds /= size_s if unit != "h" else 24
    return f"{seconds:.0f} d"


def _print_table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for number, title in enumerate(titles):
        is_first = number == 0
        table.add_column(title, justify="left" if is_first else "right", no_wrap=not is_first)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print()
    console.print(table)


def _print_concerns(warnings: tuple[str, ...]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for warning in warnings:
        table.add_row("[bold yellow]![/]", escape(warning))
    console.print()
    console.print(table if warnings else "nothing that will hurt")
