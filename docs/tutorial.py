"""The tutorial, a marimo notebook: marimo edit docs/tutorial.py, or python docs/tutorial.py."""

import marimo

app = marimo.App(app_title="hugefleet: tutorial")


@app.cell
def _():
    import marimo as mo

    mo.md("""
    # Tutorial

    Two small fleets that differ in one setting, what that does to their memory, and one host by hand. This page is
    the notebook `docs/tutorial.py` of the repository: `pip install marimo`, then `marimo edit docs/tutorial.py`.
    """)
    return (mo,)


@app.cell
def _(mo):
    mo.md("""
    ## A run

    `load` takes a built-in scenario or a file, and changes as `--set` does. `run` writes a run directory; `inline=True`
    computes in this process, without Ray. The same scenario and seed give the same bytes wherever they run.
    """)
    return


@app.cell
def _():
    import tempfile
    from pathlib import Path

    from fleet import Options, load, run

    folder = Path(tempfile.mkdtemp(prefix="hugefleet-"))
    small = ["hosts.count=2", "hosts.memory=64GiB", "vms.scale=0.0002", "run.duration=4h"]
    small += ["mmu.accesses=8000"]

    def run_with(name, *changes):
        run(load("churn", [*small, *changes]), folder / name, Options(inline=True))
        return folder / name

    always = run_with("always", "hosts.thp.enabled=always")
    return Options, Path, always, folder, load, run, run_with


@app.cell
def _(mo):
    mo.md("""
    ## Questions

    `query` takes SQL over the tables, or the name of a view; what comes back is a polars DataFrame.
    """)
    return


@app.cell
def _(always):
    from fleet import query

    query(always, "SELECT event, reason, COUNT(*) AS n FROM events GROUP BY event, reason")
    return (query,)


@app.cell
def _(always, query):
    query(always, "SELECT t_h, huge_coverage_ratio, thp_fallback_ratio FROM coverage ORDER BY t_h")
    return


@app.cell
def _(mo):
    mo.md("""
    ## One setting

    The second fleet has the same VMs at the same times, on hosts without transparent hugepages. Every difference is the
    setting's doing.
    """)
    return


@app.cell
def _(always, query, run_with):
    import altair as alt
    import polars as pl

    never = run_with("never", "hosts.thp.enabled=never")

    def hosts_of(place, name):
        found = query(place, "SELECT t_ns, unusable_index_order9, walk_share FROM hosts")
        return found.select(
            hour=pl.col("t_ns") / 3.6e12,
            unusable_percent=pl.col("unusable_index_order9") / 10,
            walk_percent=pl.col("walk_share") / 1e4,
            thp=pl.lit(name),
        )

    rows = pl.concat([hosts_of(always, "always"), hosts_of(never, "never")])
    chart = (
        alt.Chart(rows)
        .mark_line()
        .encode(
            x=alt.X("hour:Q", title="simulated hours"),
            y=alt.Y("mean(walk_percent):Q", title="% of run time in page walks"),
            color=alt.Color("thp:N", title="THP"),
        )
        .properties(width=520, height=220)
    )
    chart
    return alt, never, pl, rows


@app.cell
def _(alt, rows):
    alt.Chart(rows).mark_line().encode(
        x=alt.X("hour:Q", title="simulated hours"),
        y=alt.Y("mean(unusable_percent):Q", title="% of free memory unusable for 2 MiB"),
        color=alt.Color("thp:N", title="THP"),
    ).properties(width=520, height=220)
    return


@app.cell
def _(mo):
    mo.md("""
    Without huge pages the hosts' programs spend more of their time in page walks, and what VMs leave behind when they end is
    in smaller pieces. Two hosts and four hours are too little to act on: take more of both, and several seeds.

    ## One host by hand

    `hostsim.Host` is the same kernel, without a fleet and without guests. While THP is off, two VMs fill the host in turns;
    then one of them ends. How much of what it leaves could be a huge page?
    """)
    return


@app.cell
def _():
    from hostsim import Host

    host = Host("2GiB", enabled="always")
    first, second = host.boot_vm("900MiB"), host.boot_vm("900MiB")
    first.touch("2MiB")  # a huge page, and khugepaged knows the VM from now on
    host.write("enabled", "never")
    for mib in range(2, 900):
        first.touch("1MiB", at=f"{mib}MiB")
        second.touch("1MiB", at=f"{mib}MiB")
    second.stop()
    "\n".join(host.buddyinfo())
    return first, host


@app.cell
def _(mo):
    mo.md("""
    The free blocks by order, as `/proc/buddyinfo` prints them: most of it in blocks of order 8, half a huge page each. Compaction moves what is left of the first VM
    together, and khugepaged makes it huge.
    """)
    return


@app.cell
def _(first, host, pl):
    def state(moment):
        free = host.vmstat()["nr_free_pages"] * 4 >> 10
        whole = host.free_blocks()[9] * 2 + host.free_blocks()[10] * 4
        return {
            "moment": moment,
            "free MiB": free,
            "of it in huge pages": whole,
            "the VM's huge MiB": first.huge_bytes >> 20,
        }

    states = [state("the second VM has gone")]
    host.compact()
    states.append(state("after compaction"))
    host.write("enabled", "always")
    host.write("khugepaged/pages_to_scan", 65536)
    host.wait("10min")
    states.append(state("ten minutes later"))
    host.check()  # recomputes who owns every frame
    pl.DataFrame(states)
    return


@app.cell
def _(mo):
    mo.md("""
    ## From here

    - A policy of your own, in one file: [when memory becomes huge](how-to-policy.md), [which host takes a VM](how-to-placement.md).
    - [Your trace](how-to-my-trace.md) and [your hosts](how-to-my-cpu.md) in place of the built-in ones.
    - [Every function](api.md), [every column](columns.md), [every field of a scenario](scenario-fields.md).
    """)
    return


if __name__ == "__main__":
    app.run()
