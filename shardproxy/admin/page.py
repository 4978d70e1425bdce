"""The page at `/`: a View for people. One file, nothing loaded from elsewhere, no script.

Rule: whatever came from outside (names, addresses, reasons, which may quote a node) passes `cell`.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape

from shardproxy import __version__
from shardproxy.admin.view import View
from shardproxy.dataplane.counters import TABLE
from shardproxy.handlers.proxy import percentiles

REFRESH = 5  # seconds
TRANSITIONS = 20  # that are shown

STYLE = """
:root{color-scheme:light dark;--line:#8884;--dim:#888}
body{font:14px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:75rem;padding:0 1rem}
h1{font-size:1.3rem;margin:0 0 .2rem}h2{font-size:1rem;margin:1.6rem 0 .3rem}
p{margin:.2rem 0}.dim{color:var(--dim)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .7rem .25rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--dim);white-space:nowrap}
.n{text-align:right;font-variant-numeric:tabular-nums}
.s{border-radius:.6em;padding:.05em .6em;color:#fff;background:#777;white-space:nowrap}
.up,.ready{background:#18794e}.suspect,.degraded{background:#ad5700}.out,.unready{background:#cd2b31}
"""


def cell(value: object, css: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    return f"<td{kind}>{escape(str(value))}</td>"


def badge(state: str) -> str:
    return f'<span class="s {escape(state)}">{escape(state)}</span>'


def number(value: float) -> str:
    return cell(f"{value:,}", "n")


def size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float) -> str:
    """90000 → "1 d 1 h"."""
    left, parts = int(seconds), []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def table(columns: Sequence[str], rows: Iterable[str]) -> str:
    """A column's name that begins with "#" is one of numbers."""
    head = "".join(
        f'<th class="n">{escape(name[1:])}</th>' if name[:1] == "#" else f"<th>{escape(name)}</th>"
        for name in columns
    )
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _nodes(view: View) -> Iterable[str]:
    for node in view.nodes:
        shard = node.shard
        slowest = [
            percentiles(node.latency[kind])["p99"] if kind in node.latency else 0
            for kind in ("read", "write")
        ]
        yield "".join(
            (
                cell(node.pool.name),
                cell(shard.name),
                cell(shard.node.address),
                f"<td>{badge(shard.node.state)}{' draining' if shard.draining else ''}</td>",
                cell(shard.node.reason),
                cell(shard.node.version),
                number(shard.weight),
                number(node.counted.get("requests", 0)),
                number(node.counted.get("errors", 0)),
                number(node.now["in_flight"]),
                cell(size(node.now["queue_bytes"]), "n"),
                number(node.now["upstreams"]),
                *(cell(f"{us / 1000:g} ms" if us else "", "n") for us in slowest),
            )
        )


def _transitions(view: View) -> Iterable[str]:
    for each in view.transitions[:TRANSITIONS]:
        yield (
            cell(moment(each.time))
            + cell(each.shard)
            + cell(each.node)
            + f"<td>{badge(each.old)} → {badge(each.new)}</td>"
            + cell(each.reason)
        )


def _processes(view: View) -> Iterable[str]:
    for name, process in view.processes.items():
        yield (
            cell(name if name == "supervisor" else f"worker {name}")
            + cell(process.pid, "n")
            + cell(size(process.rss), "n")
            + cell(f"{process.cpu_user + process.cpu_system:.1f} s", "n")
            + cell(f"{process.loop_lag * 1000:.1f} ms", "n")
        )


def page(view: View) -> str:
    """The whole document."""
    clients = view.counters["clients"]
    faults = f"<p>{escape('; '.join(view.faults))}</p>" if view.faults else ""
    nodes = ("pool", "shard", "node", "state", "reason", "version", "#weight", "#requests", "#errors",
             "#in flight", "#queued", "#connections", "#p99 read", "#p99 write")  # fmt: skip
    counters = (cell(name) + number(view.counters[name]) + cell(help, "dim") for name, _, help in TABLE)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{REFRESH}">
<meta name="viewport" content="width=device-width"><title>shardproxy: {escape(view.status)}</title>
<style>{STYLE}</style></head><body>
<h1>shardproxy {badge(view.status)}</h1>{faults}
<p>{clients:,} client{"s"[: clients != 1]} on {escape(", ".join(view.addresses) or "no address")}</p>
<p class="dim">version {escape(__version__)}, up {span(view.at - view.started)}, generation {
        view.topology.generation
    },
{moment(view.at)} UTC; <a href="/metrics">metrics</a> <a href="/readyz">readyz</a></p>
<h2>Nodes</h2>{table(nodes, _nodes(view))}
<h2>Latest transitions</h2>{
        table(("time (UTC)", "shard", "node", "change", "reason"), _transitions(view))
        if view.transitions
        else '<p class="dim">none</p>'
    }
<h2>Processes</h2>{table(("process", "#pid", "#memory", "#CPU", "#loop lag"), _processes(view))}
<h2>Counters</h2>{table(("counter", "#value", ""), counters)}
</body></html>
"""
