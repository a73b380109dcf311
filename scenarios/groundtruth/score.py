#!/usr/bin/env python3
"""Score replays of op scripts against recordings of a real kernel.

    score.py REPLAY_DIR RECORDING_DIR [SCRIPT ...]     REPLAY_DIR/NAME.jsonl against RECORDING_DIR/NAME.run*.jsonl
    score.py --self RECORDING_DIR                      every run against the other runs: the kernel's agreement with itself

A cell is one metric at one snapshot (the first snapshot is given to the replay and not scored).  It passes if the
value lies within the range of the recorded runs, widened by the metric's pad: max(absolute, relative * mean).
Cells form three families: `vm` (what each VM has), `counters` (what the kernel did), `buddy` (what is left, and how
broken up it is).  A script's score in a family is the share of its cells; the result is the mean over all recorded
scripts, a missing replay counting 0.  Nothing is gained by leaving a script, a VM or a metric out.
"""

import json
import pathlib
import re
import sys

ORDERS = 11
# event and state counters: (absolute pad, relative pad)
COUNTERS = {
    "thp_fault_alloc": (2, 0.02),
    "thp_fault_fallback": (2, 0.05),
    "thp_collapse_alloc": (2, 0.05),
    "thp_split_pmd": (2, 0.03),
    "thp_split_page": (2, 0.05),
    "thp_deferred_split_page": (2, 0.03),
    "thp_swpout": (4, 0.10),
    "pswpout": (1024, 0.05),
    "oom_kill": (0, 0.0),
    "nr_anon_pages": (600, 0.01),
    "nr_anon_transparent_hugepages": (2, 0.02),
    "pgmigrate_success": (2000, 0.50),
}
STATE_COUNTERS = {"nr_anon_pages", "nr_anon_transparent_hugepages"}
VM = {"AnonHugePages": (4096, 0.03), "Rss": (1200, 0.01), "Swap": (4096, 0.05)}  # kB
BLOCK_TYPES = ("Unmovable", "Movable", "Reclaimable")


def snapshots(path):
    out = {}
    for line in open(path):
        if line.startswith("{"):
            d = json.loads(line)
            if "snapshot" in d:
                out[d["snapshot"]] = d
    return out


def free_pages_by_order(snapshot):
    free = [0] * ORDERS
    for line in snapshot["buddyinfo"]:
        for order, count in enumerate(line.split()[-ORDERS:]):
            free[order] += int(count) << order
    return free


def block_counts(snapshot):
    """Pageblocks of each migratetype over all zones, from the closing table of pagetypeinfo."""
    total, names = {}, None
    for line in snapshot.get("pagetypeinfo", []):
        if line.startswith("Number of blocks type"):
            names = line.split("type", 1)[1].split()
        elif names and re.match(r"Node \d+, zone", line):
            for name, value in zip(names, line.split(",")[1].split()[2:]):
                total[name] = total.get(name, 0) + int(value)
    return total


def cells(s, first, managed):
    """(family, name) -> (value, absolute pad, relative pad); events counted from the first snapshot."""
    out = {}
    for key, (pad, rel) in COUNTERS.items():
        value = s["vmstat"].get(key, 0)
        if key not in STATE_COUNTERS:
            value -= first["vmstat"].get(key, 0)
        out["counters", key] = (value, pad, rel)
    for name, vm in s["vms"].items():
        for key, (pad, rel) in VM.items():
            out["vm", f"{name}.{key}"] = (vm.get(key, 0), pad, rel)
    free = free_pages_by_order(s)
    total = sum(free)
    out["buddy", "free"] = (total, max(0.006 * managed, 0.05 * total), 0.0)
    for order in (3, 7, 9, 10):
        out["buddy", f"free in orders >= {order}"] = (
            sum(free[order:]),
            max(0.004 * managed, 0.05 * total),
            0.0,
        )
    for order in (3, 7, 9):
        out["buddy", f"free in orders < {order}"] = (
            sum(free[:order]),
            max(256, 0.0015 * managed),
            0.35,
        )
    blocks = block_counts(s)
    for name in BLOCK_TYPES:
        if name in blocks:
            out["buddy", f"{name} pageblocks"] = (blocks[name], 3, 0.10)
    return out


def score(replay, runs):
    """Family -> [passed, cells], and the misses."""
    labels = list(runs[0])
    start = labels[0]
    managed = runs[0][start]["meminfo_kb"]["MemTotal"] // 4
    tally, misses = {}, []
    for label in labels[1:]:
        recorded = [cells(run[label], run[start], managed) for run in runs if label in run]
        mine = {}
        if replay and label in replay:
            mine = cells(replay[label], replay.get(start, runs[0][start]), managed)
        names = set(mine).union(*recorded)
        for family, name in sorted(names):
            values = [m[family, name][0] for m in recorded if (family, name) in m] or [0]
            _, pad, rel = next(m[family, name] for m in [*recorded, mine] if (family, name) in m)
            got = mine[family, name][0] if (family, name) in mine else (0 if mine else None)
            if not any(values) and not got and got is not None:
                continue  # nothing happened on either side: no evidence
            pad = max(pad, rel * abs(sum(values) / len(values)))
            ok = got is not None and min(values) - pad <= got <= max(values) + pad
            t = tally.setdefault(family, [0, 0])
            t[0] += ok
            t[1] += 1
            if not ok:
                misses.append(
                    f"  {label:>14} {family}: {name:<30} replay {got} recorded {min(values)}..{max(values)}"
                )
    return tally, misses


def report(rows, total):
    families = ("vm", "counters", "buddy")
    for name, tally, misses in rows:
        parts = [
            f"{f} {100 * tally[f][0] / tally[f][1]:5.1f}" if f in tally else f"{f}   -  "
            for f in families
        ]
        print(f"{name:<34} {'  '.join(parts)}")
        for miss in misses[:8]:
            print(miss)
    means = []
    for f in families:
        shares = [t[f][0] / t[f][1] for _, t, _ in rows if f in t]
        means.append((f, 100 * sum(shares) / max(1, len(shares))))
    overall = sum(v for _, v in means) / len(means)
    print(
        ", ".join(f"{f} {v:.1f} %" for f, v in means)
        + f"; mean {overall:.1f} % over {total} scripts"
    )


def main(argv):
    if argv[1] == "--self":
        rec, rows = pathlib.Path(argv[2]), []
        for name in sorted({p.name.split(".run")[0] for p in rec.glob("*.run*.jsonl")}):
            runs = [snapshots(p) for p in sorted(rec.glob(f"{name}.run*.jsonl"))]
            total = {}
            for i, run in enumerate(runs):
                tally, _ = score(run, runs[:i] + runs[i + 1 :])
                for f, (p, c) in tally.items():
                    t = total.setdefault(f, [0, 0])
                    t[0], t[1] = t[0] + p, t[1] + c
            rows.append((name, total, []))
        return report(rows, len(rows))
    replays, rec = pathlib.Path(argv[1]), pathlib.Path(argv[2])
    names = sorted({p.name.split(".run")[0] for p in rec.glob("*.run*.jsonl")})
    names = [n for n in names if not argv[3:] or n in argv[3:]]
    rows = []
    for name in names:
        path = replays / f"{name}.jsonl"
        runs = [snapshots(p) for p in sorted(rec.glob(f"{name}.run*.jsonl"))]
        replay = snapshots(path) if path.exists() else None
        rows.append((name, *score(replay, runs)))
    return report(rows, len(names))


if __name__ == "__main__":
    main(sys.argv)
