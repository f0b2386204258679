"""The panels of `bros top`, made from the history; no I/O."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from client.colors import ALARM_COLOR, BE_COLOR, CACHED_COLOR, CLASS_COLORS, FREE_COLOR, RT_COLOR
from client.snapshot import KVPoolView, PreemptionView, RequestView, Snapshot, StepView
from client.terminal import printable
from client.top.history import History
from client.top.kv_map import draw

_NAMES = {"rt": "real-time", "be": "best-effort"}
_CLASS_COLUMNS = ("running", "waiting", "preempted", "tokens/s", "TTFT p50 / p95", "in SLO", "TPOT p50 / p95", "in SLO")
_ID_WIDTH = 10
_NONE = "–"
_TTFT = "bros_time_to_first_token_seconds"
_TPOT = "bros_time_per_output_token_seconds"
_ROOMY = 110  # cells in which the classes' columns stand two apart
_FRAME = 4  # cells of a panel's border and padding


def render(history: History, width: int, height: int) -> RenderableType:
    """Return the whole picture for a terminal of this size. Lines that do not fit are cut off at the bottom."""
    frame = history.latest
    if frame.snapshot is None:
        return Panel(Text(printable(frame.problem or "no answer")), title="bros top", border_style="red")
    num_requests = max(3, min(12, height // 4))
    parts: list[RenderableType] = [_classes(history, frame.snapshot, width), _engine(history, frame.snapshot)]
    max_bands = max(1, (height - num_requests - 20) // 3)
    parts += [_kv(frame.snapshot, history.previous_snapshot, width - _FRAME, max_bands)]
    parts += [_requests(frame.snapshot, num_requests)]
    if frame.problem:
        parts.append(Text(printable(frame.problem), style="red"))
    return Group(*parts)


def _classes(history: History, snapshot: Snapshot, width: int) -> RenderableType:
    is_narrow = width < _ROOMY  # one cell between columns, or else two
    table = Table(expand=True, box=None, header_style="dim", collapse_padding=is_narrow, pad_edge=False)
    for column in ("", *_CLASS_COLUMNS):
        table.add_column(column, justify="left" if not column else "right")
    for name, counts in snapshot.requests_by_class.items():
        label = {"class": name}
        is_rt = name == "rt"
        table.add_row(
            Text(_NAMES[name], style=f"bold {CLASS_COLORS[name]}"),
            str(counts.num_running),
            str(counts.num_waiting),
            Text(str(counts.num_preempted), style="bold red" if counts.num_preempted else ""),
            _number(history.rate("bros_output_tokens_total", **label)),
            f"{_seconds(history.quantile(_TTFT, 0.5, **label))} / {_seconds(history.quantile(_TTFT, 0.95, **label))}",
            _percent(history.ratio("bros_slo_requests_total", {"met": "true"}, slo="ttft")) if is_rt else "",
            f"{_seconds(history.quantile(_TPOT, 0.5, **label))} / {_seconds(history.quantile(_TPOT, 0.95, **label))}",
            _percent(history.ratio("bros_slo_requests_total", {"met": "true"}, slo="tpot")) if is_rt else "",
        )
    title = f"bros top · policy {snapshot.policy} · {snapshot.total_steps:,} steps · last {history.window_s:g} s"
    return Panel(table, title=title, border_style="dim")


def _engine(history: History, snapshot: Snapshot) -> RenderableType:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(style="dim", width=8)
    table.add_column(ratio=1)
    step = snapshot.step
    table.add_row("step", _step_bar(step, snapshot.latency_error_ratio) if step else Text("none yet"))
    tokens = {name: history.rate("bros_step_tokens_total", **{"class": name}) for name in ("rt", "be")}
    table.add_row(
        "batch",
        Text.assemble(
            *(_batch(step) if step else []),
            ("computed ", "dim"),
            f"{_number(tokens['rt'])} + {_number(tokens['be'])} tokens/s",
        ),
    )
    return Panel(table, title="engine", title_align="left", border_style="dim")


def _step_bar(step: StepView, model_error_ratio: float) -> Text:
    """Draw the step's time as a part of its budget; beyond it, all red."""
    if step.budget_s is None:
        return Text.assemble(_seconds(step.duration_s), ("  no deadline binds", "dim"))
    used = step.duration_s / step.budget_s
    return Text.assemble(
        bar(used, 20, "red" if used > 1.0 else "green"),
        f"  {_seconds(step.duration_s)} of {_seconds(step.budget_s)} budget",
        ("   predicted ", "dim"),
        f"{_seconds(step.predicted_s)}",
        ("   model error ", "dim"),
        _percent(model_error_ratio),
    )


def _batch(step: StepView) -> list[tuple[str, str]]:
    return [
        (f"{step.num_tokens[name]} tokens of {step.num_requests[name]} {name.upper()}  ", CLASS_COLORS[name])
        for name in ("rt", "be")
    ]


def _kv(snapshot: Snapshot, before: Snapshot | None, width: int, max_bands: int) -> RenderableType:
    kv = snapshot.kv
    num_slots = kv.num_blocks * kv.block_size
    rt, be = sum(kv.head_fill), sum(kv.tail_fill)
    shared = sum(1 for head, tail in zip(kv.head_fill, kv.tail_fill, strict=True) if head and tail)
    caption = Text.assemble(
        ("▄ ", RT_COLOR), f"RT {rt / num_slots:.0%} from the floor   ",
        ("▀ ", BE_COLOR), f"BE {be / num_slots:.0%} from the ceiling   ",
        ("█ ", ALARM_COLOR), "taken just now   ",
        ("█ ", CACHED_COLOR), f"cached {sum(kv.cached_fill) / num_slots:.0%}   ",
        ("█ ", FREE_COLOR), f"free   {shared} of {kv.num_blocks} blocks shared",
    )  # fmt: skip
    lines = draw(kv, before.kv if before else None, width, max_bands)
    return Panel(
        Group(*lines, Text(), caption, _host(kv, snapshot)), title="KV pool", title_align="left", border_style="dim"
    )


def _host(kv: KVPoolView, snapshot: Snapshot) -> Text:
    if not kv.num_host_slots:
        return Text("no host pool: preempted KV is computed again", style="dim")
    return Text.assemble(
        ("host pool ", "dim"),
        bar(kv.num_host_slots_used / kv.num_host_slots, 20, BE_COLOR),
        f" {kv.num_host_slots_used:,} of {kv.num_host_slots:,}",
        ("   checkpointed ", "dim"),
        f"{snapshot.total_copied_out_tokens:,}",
        ("   brought back ", "dim"),
        f"{snapshot.total_copied_in_tokens:,}",
        ("   computed again ", "dim"),
        f"{snapshot.total_recomputed_tokens:,} tokens",
    )


def _requests(snapshot: Snapshot, max_rows: int) -> RenderableType:
    table = Table(expand=True, box=None, header_style="dim")
    for column in ("request", "class", "state", "age", "slack", "output", "KV held"):
        table.add_column(
            column, justify="right" if column in ("age", "slack", "output", "KV held") else "left", no_wrap=True
        )
    table.add_column("why", ratio=1)  # wraps where the terminal is narrow: nothing of it is cut
    last_loss = {loss.request_id: loss for loss in snapshot.preemptions}
    for view in sorted(snapshot.requests, key=_urgency)[:max_rows]:
        table.add_row(
            Text(_name(view.request_id)),
            Text(view.priority_class, style=CLASS_COLORS[view.priority_class]),
            Text(view.state, style="bold red" if view.state == "preempted" else ""),
            _seconds(view.age_s),
            Text(_seconds(view.slack_s), style="red" if (view.slack_s or 0.0) < 0.0 else ""),
            f"{view.num_output:,}",
            f"{view.num_held:,}/{view.num_known:,}",
            Text(_why(view, last_loss.get(view.request_id))),
        )
    num_more = sum(now.num_running + now.num_preempted for now in snapshot.requests_by_class.values()) - table.row_count
    title = "requests" + (f" · {num_more} more" if num_more > 0 else "")
    return Panel(table, title=title, title_align="left", border_style="dim")


def _name(request_id: str) -> str:
    """Return the beginning of an id, which its client chose, on one line."""
    return printable(request_id[:_ID_WIDTH]).replace("\n", " ").replace("\t", " ")


def _urgency(view: RequestView) -> tuple[bool, bool, float]:
    """Preempted ones first, then real-time, then the oldest."""
    return view.state != "preempted", view.priority_class != "rt", -view.age_s


def _why(view: RequestView, loss: PreemptionView | None) -> str:
    """Say why a request waits, and what it lost."""
    if loss is None:
        return ""
    whom = f"for {_name(loss.in_favour_of)}" if loss.in_favour_of else "for room"
    kept = f"kept {loss.num_kept:,} of {loss.num_known:,} {whom}, step {loss.step_index:,}"
    if view.state != "preempted":
        return f"back · {kept}"
    return f"{kept} · {view.num_on_host:,} on host" if view.num_on_host else f"{kept} · to be computed again"


def bar(ratio: float, width: int, color: str) -> Text:
    """Return a bar of `width` cells that is filled to `ratio` (clipped to 0–1)."""
    filled = round(min(max(ratio, 0.0), 1.0) * width)
    return Text.assemble(("━" * filled, color), ("━" * (width - filled), FREE_COLOR))


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value * 1e3:.0f} ms" if abs(value) < 1.0 else f"{value:.1f} s"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{value:.1%}"
