"""Text for people: tables, aligned lines, and the summaries of runs, partitions and profiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fl.cli.json_output import print_json

MOST_METRICS = 5  # lines of metrics in the summary of a run, so that it has at most 12 lines

if TYPE_CHECKING:
    from fl.simulation.result import Result
    from fl.tracking.profile import Profile


def two_columns(pairs: Iterable[tuple[str, object]]) -> str:
    """Lines of a name and a value, the values aligned.

    >>> print(two_columns([("rounds", 3), ("up", "1 MB")]))
    rounds  3
    up      1 MB
    """
    pairs = list(pairs)
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in pairs)


def print_table(rows: Sequence[Mapping[str, Any]], form: str, as_json: bool) -> None:
    """Print rows on stdout as a table in one of `options.FORMATS`, or as JSON."""
    from fl.report import render

    if as_json:
        print_json(render.plain(rows))
    else:
        print(render.FORMATS[form](rows), end="")


def four_decimals(value: float | None) -> str:
    """A metric with four decimals; "-" for None."""
    return "-" if value is None else f"{value:.4f}"


def _importance(metric: str) -> tuple[bool, int]:
    """Sort key of metrics: accuracies and losses first, and short names before statistics over clients."""
    plain = metric.rpartition("/")[2]
    return not plain.startswith(("accuracy", "loss")), plain.count("_")


def format_summary(summary: Mapping[str, Any]) -> str:
    """The summary of a run: why it ended, last metrics, MB sent, time, digest, and how to continue."""
    from fl.tracking.round_lines import evaluated, format_seconds, megabytes

    final, directory = summary["final"], summary["directory"]
    finished = summary["reason"] != "interrupted"
    up, down = megabytes(summary["total_uplink_bytes"]), megabytes(summary["total_downlink_bytes"])
    lines = {"ended": f"{summary['reason']} ({final.get('round', -1) + 1} rounds)"}
    metrics = evaluated(final)
    shown = sorted(metrics, key=_importance)[: MOST_METRICS if len(metrics) > MOST_METRICS + 1 else None]
    lines |= {k: four_decimals(v) for k, v in metrics.items() if k in shown}
    if len(shown) < len(metrics):
        lines["more metrics"] = f"{len(metrics) - len(shown)} in {directory}/metrics.jsonl"
    lines |= _privacy_spent(final)
    lines |= {"MB up, down": f"{up}, {down}", "time": format_seconds(summary["total_wall_seconds"])}
    lines |= {"digest": summary["digest"], "configuration": summary["configuration"], "directory": directory}
    if finished and not _privacy_spent(final):  # noise is made for the planned rounds
        lines["more rounds"] = f"fl resume {directory} rounds=+10"
    elif not finished:
        lines["resume with"] = f"fl resume {directory}"
    return two_columns(lines.items())


def _privacy_spent(final: Mapping[str, Any]) -> dict[str, str]:
    """Epsilon of a private run, with the lower bound of an audit; {} if the run is not private.

    >>> _privacy_spent({"epsilon": 2.0, "empirical_epsilon": 0.25})
    {'epsilon': '2.0000; the audit shows that it is at least 0.2500'}
    """
    lines = {}
    for name in ("epsilon", "virtual_epsilon"):
        if name in final:
            lines[name] = "infinite" if final[name] is None else four_decimals(final[name])
            if "empirical_epsilon" in final:
                lines[name] += f"; the audit shows that it is at least {four_decimals(final['empirical_epsilon'])}"
    return lines


def format_baselines(result: Result) -> str:
    """Table of a run beside its baselines; "" if it has none or they share no metric of clients."""
    if not result.baselines:
        return ""
    from fl.report.compare import table
    from fl.report.render import markdown
    from fl.report.variants import Variant

    results = {"this run": result, **result.baselines}
    variants = [Variant(name, [one.metrics]) for name, one in results.items()]
    shared = set.intersection(*({key for row in variant.runs[0] for key in row} for variant in variants))
    for metric in ("accuracy", "loss"):
        names = [f"clients/{metric}_weighted", f"clients/{metric}_worst10", f"val/{metric}"]
        shown = [name for name in names if name in shared]
        if shown:
            return "\n" + markdown(table(variants, shown))
    return ""


def format_profile(profile: Profile) -> str:
    """Seconds by category, and the files that the profile was written to."""
    from fl.report.render import markdown

    assert profile.directory is not None, "a profile knows its directory once its run has started"
    files = f"{profile.directory / 'profile.json'}, {profile.directory / 'trace.json'}"
    table = markdown(profile.table()) + "\n" if profile.rounds else ""
    return f"\n{profile}\n\n{table}{files} (open the trace in chrome://tracing or ui.perfetto.dev)"


def format_partition_stats(stats: Mapping[str, Any]) -> str:
    """Statistics of a partition: sizes, labels per client, distance from the whole data set."""

    def spread(name: str) -> str:
        values = stats[name]
        return f"{values['min']} .. {values['median']:g} .. {values['max']}"

    lines = {"clients": stats["clients"], "rows": stats["rows"]}
    lines |= {"train, val, test": ", ".join(str(stats[name]) for name in ("train", "val", "test"))}
    lines |= {"rows per client": f"{spread('size')}  (min .. median .. max)"}
    if "unlabelled" in stats:
        lines |= {
            "unlabelled": f"{stats['unlabelled']} training rows",
            "labelled per client": spread("labelled"),
        }
    if "labels" in stats:
        lines |= {"labels per client": f"{spread('labels')}  of {stats['classes']}"}
        lines |= {"mean EMD": f"{stats['emd']:.4f}", "mean entropy": f"{stats['entropy']:.4f} nats"}
    return two_columns(lines.items())


def format_party_stats(stats: Mapping[str, Any]) -> str:
    """Statistics of a partition of columns: the columns of each party, their importance and their correlation."""
    rows = stats["rows"]
    lines = {"parties": str(len(stats["columns"]))}
    lines |= {
        "train, val, test": ", ".join(str(rows[name]) for name in ("train", "val", "test")) + " rows of all parties"
    }
    for party, (own, share) in enumerate(zip(stats["columns"], stats["importance"])):
        name = "active party" if party == 0 else f"client {party - 1}"
        shown = ", ".join(map(str, own[:12])) + (", ..." if len(own) > 12 else "")
        lines |= {name: f"importance {share:.3f}, {len(own)} columns: {shown}"}
    lines |= {"alpha": f"{stats['alpha']:.3g}  (of the importance in a linear model)"}
    lines |= {"Icor": f"{stats['icor']:.4f}  (correlation between parties beyond that inside)"}
    return two_columns(lines.items())
