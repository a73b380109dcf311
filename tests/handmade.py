"""Runs whose tables are made by hand, written as a run writes them."""

import json
from collections import defaultdict

import numpy as np
from fakenode import AT

from fleet.demand import open_demand
from fleet.rundir import RUN_FILE
from fleet.scheduler import _record
from fleet.sink import Sink
from fleet.store import Store
from hostsim.core.stats import EVENT_NAMES, NODE_TABLES, REASON_NAMES, TABLES

LABELS = {"event": EVENT_NAMES, "reason": REASON_NAMES}


def write_run(out, scenario, tables, **record):
    """Write rows, dicts by column, as the run of a scenario; what a row lacks is 0."""
    store = Store(out)
    store.make_folder()
    sink = Sink(store, scenario.nr_hosts, scenario.hosts_per_part, attempt=1)
    epochs = defaultdict(lambda: defaultdict(list))
    for table, rows in tables.items():
        for row in rows:
            epoch = max(row["t_ns"] - 1, 0) // scenario.epoch_ns
            epochs[epoch][table].append(row)
    for epoch in sorted(epochs):
        sink.write(epoch, {table: _array(table, rows) for table, rows in epochs[epoch].items()})
    content = _record(scenario, open_demand(scenario)) | {"status": "complete"} | record
    (out / RUN_FILE).write_text(json.dumps(content))
    return out


def _array(table, rows):
    if table in NODE_TABLES:
        rows = sorted(rows, key=lambda row: row["host_id"])
    found = np.zeros((len(rows), len(TABLES[table])), np.int64)
    for line, row in zip(found, rows, strict=True):
        for name, value in row.items():
            line[AT[table][name]] = LABELS[name].index(value) if name in LABELS else value
    return found
