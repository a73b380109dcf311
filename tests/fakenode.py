"""A node that keeps books instead of memory: enough to test everything around it."""

import numpy as np

from fleet.node import REBOOT, REBOOT_EMPTY, RESTART, START, Commands, NodeRows
from hostsim.core.errors import InvariantError
from hostsim.core.stats import EVENT_NAMES, REASON_NAMES, TABLES

AT = {table: {c.name: i for i, c in enumerate(columns)} for table, columns in TABLES.items()}


def row(table, **values):
    found = np.zeros(len(TABLES[table]), np.int64)
    for name, value in values.items():
        found[AT[table][name]] = value
    return found


def stack(table, rows):
    return np.array(rows, np.int64).reshape(len(rows), len(TABLES[table]))


class FakeNode:
    """Runs VMs as entries of a dict; kills every VM whose number is a multiple of `kill_every`."""

    kill_every = 50

    def __init__(self, spec, guests, host_id, seed, tick_ns, vm_rows_ns, captured=()):
        self.spec, self.host_id, self.tick_ns, self.vm_rows_ns = spec, host_id, tick_ns, vm_rows_ns
        self.vms = {}
        self.starts = self.ends = 0
        self.checks = 0
        self.vm_rows, self.event_rows, self.migration_rows = [], [], []

    def advance(self, commands: Commands, t0_ns, t1_ns):
        hosts, vms, events = [], [], []
        place = 0
        for t_ns in range(t0_ns + self.tick_ns, t1_ns + 1, self.tick_ns):
            while place < len(commands.t_ns) and commands.t_ns[place] < t_ns:
                self.obey(Commands(*(column[place] for column in commands)), vms, events)
                place += 1
            hosts.append(self.host_row(t_ns))
            if t_ns % self.vm_rows_ns == 0:
                vms += [self.vm_row(t_ns, vm_id, 0) for vm_id in sorted(self.vms)]
        vms, self.vm_rows = self.vm_rows + vms, []
        events, self.event_rows = self.event_rows + events, []
        moved, self.migration_rows = self.migration_rows, []
        return NodeRows(
            stack("hosts", hosts),
            stack("vms", vms),
            stack("events", events),
            stack("migrations", moved),
        )

    def emigrate(self, t_ns, moves, terms):
        leaving = []
        for vm_id, reason in moves:
            event = self.event(t_ns, vm_id, "migrate", REASON_NAMES[reason])
            self.event_rows.append(event)
            leaving.append((vm_id, self.vms.pop(vm_id), self.host_id, reason))
            self.ends += 1
        return leaving

    def immigrate(self, t_ns, arriving, terms):
        for vm_id, vm, source, reason in arriving:
            self.vms[vm_id] = vm
            self.starts += 1
            self.migration_rows.append(
                row(
                    "migrations",
                    t_ns=t_ns,
                    host_id=self.host_id,
                    vm_id=vm_id,
                    source_host_id=source,
                    reason=reason,
                )
            )

    def obey(self, command, vms, events):
        t_ns, vm_id = int(command.t_ns), int(command.vm_id)
        if command.kind in (START, RESTART):
            self.vms[vm_id] = (int(command.vcpus), int(command.memory_pages))
            self.starts += 1
            event = "start" if command.kind == START else "restart"
            events.append(self.event(t_ns, vm_id, event))
            if command.kind == START and self.kill_every and vm_id % self.kill_every == 0:
                self.end(t_ns + 1, vm_id, "kill", vms, events)
        elif command.kind in (REBOOT, REBOOT_EMPTY):
            for running in sorted(self.vms):
                self.end(t_ns, running, "kill", vms, events, "failure")
        elif vm_id in self.vms:
            self.end(t_ns, vm_id, "end", vms, events)

    def end(self, t_ns, vm_id, event, vms, events, reason=None):
        vms.append(self.vm_row(t_ns, vm_id, 1))
        reason = reason or ("oom" if event == "kill" else "")
        events.append(self.event(t_ns, vm_id, event, reason))
        del self.vms[vm_id]
        self.ends += 1

    def event(self, t_ns, vm_id, event, reason=""):
        vcpus, pages = self.vms[vm_id]
        return row(
            "events",
            t_ns=t_ns,
            host_id=self.host_id,
            vm_id=vm_id,
            event=EVENT_NAMES.index(event),
            reason=REASON_NAMES.index(reason),
            vcpus=vcpus,
            memory_pages=pages,
        )

    def host_row(self, t_ns):
        committed = sum(pages for _, pages in self.vms.values())
        return row(
            "hosts",
            t_ns=t_ns,
            host_id=self.host_id,
            nr_vms=len(self.vms),
            committed_vcpus=sum(vcpus for vcpus, _ in self.vms.values()),
            committed_pages=committed,
            managed_pages=self.spec.memory_pages,
            nr_free_pages=self.spec.memory_pages - committed // 2,
            nr_guest_pages=committed // 2,
            nr_anon_transparent_hugepages=committed // 2048,
            nr_free_order9=self.host_id % 2,
            unusable_index_order9=250,
            thp_fault_alloc=3 * self.starts,
            thp_fault_fallback=self.starts,
            vm_starts=self.starts,
            vm_ends=self.ends,
        )

    def vm_row(self, t_ns, vm_id, ended):
        vcpus, pages = self.vms[vm_id]
        return row(
            "vms",
            t_ns=t_ns,
            host_id=self.host_id,
            vm_id=vm_id,
            vcpus=vcpus,
            memory_pages=pages,
            ended=ended,
        )

    def save(self):
        vms = [(vm_id, *size) for vm_id, size in self.vms.items()]
        return {
            "vms": np.array(vms, np.int64).reshape(len(vms), 3),
            "counts": np.array([self.starts, self.ends, self.checks]),
        }

    def restore(self, state):
        self.vms = {vm_id: (vcpus, pages) for vm_id, vcpus, pages in state["vms"].tolist()}
        self.starts, self.ends, self.checks = state["counts"].tolist()

    def check(self):
        self.checks += 1
        if self.starts < 0:
            raise InvariantError("starts is negative")
