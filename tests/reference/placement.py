"""Placement in plain Python: one list of events, hosts as dicts, every host looked at."""

NEVER = 2**63 - 1


class ReferencePlacer:
    """The definitions of first fit and best fit, word by word.

    Best fit: among fitting non-empty hosts the one with the fewest free vCPUs, then the least
    free memory, then the lowest number; if none fits, the lowest-numbered fitting empty host.
    First fit: the lowest-numbered fitting host, empty or not.
    """

    def __init__(self, vms, hosts, policy):
        self.vms = vms  # (start_ns, end_ns, vcpus, pages), sorted by start
        self.total = hosts  # (vcpus, pages)
        self.hosts = [{"vcpus": v, "pages": p, "vms": set()} for v, p in hosts]
        self.policy = policy
        self.host_of = {}
        self.first_call = True

    def choose(self, vcpus, pages):
        fitting = [
            n for n, h in enumerate(self.hosts) if h["vcpus"] >= vcpus and h["pages"] >= pages
        ]
        if self.policy == "first-fit":
            return min(fitting, default=None)
        used = [n for n in fitting if self.hosts[n]["vms"]]
        if used:
            return min(used, key=lambda n: (self.hosts[n]["vcpus"], self.hosts[n]["pages"], n))
        return min(fitting, default=None)

    def leave(self, vm):
        host = self.hosts[self.host_of.pop(vm)]
        host["vms"].remove(vm)
        host["vcpus"] += self.vms[vm][2]
        host["pages"] += self.vms[vm][3]

    def epoch(self, t0, t1):
        events = []  # (time, 0 departure or 1 arrival, vm)
        for vm, (start, end, _, _) in enumerate(self.vms):
            if t0 <= start < t1 or (self.first_call and start < t0 < end):
                events.append((max(start, t0), 1, vm))
            if t0 <= end < t1:
                events.append((end, 0, vm))
        self.first_call = False
        commands, rejected = [], []
        for now, is_arrival, vm in sorted(events):
            if not is_arrival:
                if vm in self.host_of:
                    commands.append((self.host_of[vm], now, 0, vm))
                    self.leave(vm)
                continue
            _, _, vcpus, pages = self.vms[vm]
            chosen = self.choose(vcpus, pages)
            if chosen is None:
                fits_empty = any(v >= vcpus and p >= pages for v, p in self.total)
                reason = "no_host_fits" if fits_empty else "larger_than_any_host"
                rejected.append((vm, now, reason))
                continue
            host = self.hosts[chosen]
            host["vms"].add(vm)
            host["vcpus"] -= vcpus
            host["pages"] -= pages
            self.host_of[vm] = chosen
            commands.append((chosen, now, 1, vm))
        return sorted(commands), rejected

    def kill(self, vms):
        for vm in vms:
            if vm in self.host_of:
                self.leave(vm)
