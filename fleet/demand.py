"""The VMs a scenario asks for: read or generated, and whether the fleet could hold them."""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fleet.captured import captured_hosts, with_captured
from fleet.placement import Placer, Tuning
from fleet.pool import MAX_PAGES, MAX_VCPUS
from fleet.scenario import HostGroup, Scenario
from fleet.sections import duration_text, pages_text
from fleet.trace import Trace, read_trace
from guestsim.guest import MIN_PAGES
from hostsim.core.errors import Problem, ScenarioError

MAX_FLAVOURS = 5  # named in messages; the number of the others is stated


def open_demand(scenario: Scenario) -> Trace:
    """Return the VMs of a scenario, checked against its hosts.

    Raises
    ------
    ScenarioError
        A trace that cannot be read, or VMs that no host could ever hold.
    """
    problems = [*_oversold(scenario), *_beyond(scenario)]
    if problems:
        raise ScenarioError(problems)
    trace = with_captured(scenario, _trace(scenario))
    problems = list(_misfits(scenario, trace))
    if problems:
        raise ScenarioError(problems)
    return trace


def _trace(scenario: Scenario) -> Trace:
    vms = scenario.vms
    if vms.source == "trace":
        if not vms.path:
            hint = "--set vms.path=FILE; fleet trace import and fleet trace generate write one"
            raise ScenarioError([Problem(f"{scenario.origin}: vms.path", "is missing", hint)])
        return read_trace(vms.path)
    from fleet.churn import generate_azure_v1

    return generate_azure_v1(
        seed=scenario.seed,
        duration_ns=scenario.duration_ns,
        scale=vms.scale,
        standing=vms.standing,
    )


def arrivals(trace: Trace, duration_ns: int) -> NDArray[np.bool_]:
    """Mark the VMs that ask for a host within a run, those standing at its start included."""
    mask: NDArray[np.bool_] = (trace.start_ns < duration_ns) & (
        trace.end_ns > np.maximum(trace.start_ns, 0)
    )
    return mask


def arrivals_digest(trace: Trace, duration_ns: int) -> str:
    """Return a digest of who asks for a host within a run: number, start, end and size."""
    mask = arrivals(trace, duration_ns)
    columns = (trace.vm_id, trace.start_ns, trace.end_ns, trace.vcpus, trace.memory_pages)
    found = hashlib.sha256()
    for column in columns:
        found.update(column[mask].astype("<i8").tobytes())
    return found.hexdigest()


def offered(scenario: Scenario, group: HostGroup) -> tuple[int, int]:
    """Return the vCPUs and pages a host of a group offers to VMs, overcommit included."""
    spec, placement = group.spec, scenario.placement
    return (
        int(spec.vcpus * placement.vcpu_overcommit),
        int((spec.memory_pages - spec.reserved_pages) * placement.memory_overcommit),
    )


def _oversold(scenario: Scenario) -> Iterator[Problem]:
    """Find overcommits under which a host offers more than placement can count."""
    placement = scenario.placement
    for index, group in enumerate(scenario.groups):
        spec, host = group.spec, f"{scenario.origin}: hosts[{index}]"
        for what, value, limit, overcommit in (
            ("vcpus", spec.vcpus, MAX_VCPUS, placement.vcpu_overcommit),
            ("memory", spec.memory_pages, MAX_PAGES, placement.memory_overcommit),
        ):
            if value * overcommit >= limit:
                amount = pages_text(value) if what == "memory" else str(value)
                most = pages_text(limit) if what == "memory" else str(limit)
                message = f"{amount} times overcommit {overcommit:g} must be below {most}"
                yield Problem(f"{host}.{what}", message, "lower the overcommit of placement")


def _beyond(scenario: Scenario) -> Iterator[Problem]:
    """Find maintenance of hosts that are none, or after the end."""
    for index, window in enumerate(scenario.maintenance):
        where = f"{scenario.origin}: maintenance[{index}]"
        last = window.first_host + window.hosts - 1
        if last >= scenario.nr_hosts:
            message = f"hosts {window.first_host} to {last} are not all in a fleet of 0 to"
            yield Problem(f"{where}.hosts", f"{message} {scenario.nr_hosts - 1}")
        if window.start >= scenario.duration_ns:
            message = f"{duration_text(window.start)} is not before the end of the run at"
            yield Problem(f"{where}.start", f"{message} {duration_text(scenario.duration_ns)}")


def _misfits(scenario: Scenario, trace: Trace) -> Iterator[Problem]:
    """Find VM sizes that even an empty host could not take."""
    here = arrivals(trace, scenario.duration_ns)
    if not here.any():
        yield Problem(
            f"{scenario.origin}: vms", "no VM arrives within run.duration", "raise vms.scale"
        )
        return
    small = np.flatnonzero(here & (trace.memory_pages < MIN_PAGES))
    if len(small):
        least = small[np.argmin(trace.memory_pages[small])]
        yield Problem(
            f"{scenario.origin}: vms",
            f"VM {trace.vm_id[least]} has {pages_text(int(trace.memory_pages[least]))}, and "
            f"{len(small)} in all have less than the {pages_text(MIN_PAGES)} a guest boots with",
            "leave them out of the trace",
        )
    rooms = [offered(scenario, group) for group in scenario.groups]
    fits = np.arange(trace.nr_vms) < len(captured_hosts(scenario))
    for vcpus, pages in rooms:
        fits |= (trace.vcpus <= vcpus) & (trace.memory_pages <= pages)
    if not scenario.placement.reject_oversized or not fits[here].any():
        yield from _name_misfits(scenario, trace, np.flatnonzero(here & ~fits))


def _name_misfits(scenario: Scenario, trace: Trace, vms: NDArray[np.int64]) -> Iterator[Problem]:
    largest = max(
        range(len(scenario.groups)), key=lambda index: offered(scenario, scenario.groups[index])[1]
    )
    group = scenario.groups[largest]
    vcpus, pages = offered(scenario, group)
    flavours, firsts, counts = np.unique(trace.flavour[vms], return_index=True, return_counts=True)
    by_count = np.argsort(-counts, kind="stable")
    for place in by_count[:MAX_FLAVOURS]:
        vm = vms[firsts[place]]
        name = f"VM flavour {trace.flavours[flavours[place]]} ({counts[place]} arrive)"
        hint = "larger hosts, or placement.reject_oversized = true"
        if trace.memory_pages[vm] > pages:
            where = f"{scenario.origin}: hosts[{largest}].memory"
            have = f"{pages_text(group.spec.memory_pages)} with {pages_text(pages)} for VMs"
        else:
            where = f"{scenario.origin}: hosts[{largest}].vcpus"
            have = f"{group.spec.vcpus} with {vcpus} for VMs"
        yield Problem(where, f"{have} is smaller than {name}", hint)
    if len(by_count) > MAX_FLAVOURS:
        more = len(by_count) - MAX_FLAVOURS
        yield Problem(f"{scenario.origin}: vms", f"{more} more flavours fit no host")


def make_placer(scenario: Scenario, trace: Trace) -> Placer:
    """Return the placement of a scenario at time 0."""
    specs, section = scenario.host_specs(), scenario.placement
    return Placer(
        trace,
        np.array([spec.vcpus for spec in specs], np.int32),
        np.array([spec.memory_pages - spec.reserved_pages for spec in specs], np.int64),
        section.policy,
        section.vcpu_overcommit,
        section.memory_overcommit,
        Tuning(scenario.seed, section.choices, section.lifetime_error),
        np.array([spec.nr_nodes for spec in specs], np.int64),
        captured_hosts(scenario),
    )
