"""Placement in plain Python: one list of events, hosts as dicts, every host looked at."""

from fractions import Fraction
from math import isqrt

NEVER = 2**63 - 1
HOUR = 3600 * 10**9


def share(amount, total):
    return amount * 2**20 // total


class ReferencePlacer:
    """The definition of every policy, word by word.

    All but first fit: among fitting hosts in use the one the policy likes best, then the lowest
    number; if none fits, the lowest-numbered fitting empty host.  Policies that read gauges
    compare empty hosts with the others.
    """

    def __init__(self, vms, hosts, policy, expected_ends, draws, choices=2, nodes=None):
        self.vms = vms  # (start_ns, end_ns, vcpus, pages), sorted by start
        self.total = hosts  # (vcpus, pages)
        self.hosts = [
            {"vcpus": v, "pages": p, "vms": set(), "broken": 0, "unusable": 0, "partial": 0}
            for v, p in hosts
        ]
        nodes = nodes or [1] * len(hosts)
        for host, n, (v, p) in zip(self.hosts, nodes, hosts, strict=True):
            host["nodes"] = [[v // n, p // n] for _ in range(n)]
        self.homes = {}  # VM -> nodes, and its part of each
        self.policy = policy
        self.expected_ends, self.draws, self.choices = expected_ends, draws, choices
        self.last = 0
        self.host_of = {}
        self.first_call = True

    def observe(self, gauges):
        for host, (broken, unusable, partial) in zip(self.hosts, gauges, strict=True):
            host |= {"broken": broken, "unusable": unusable, "partial": partial}

    def choose(self, vm, now):
        _, _, vcpus, pages = self.vms[vm]
        fitting = [
            n for n, h in enumerate(self.hosts) if h["vcpus"] >= vcpus and h["pages"] >= pages
        ]
        rank = getattr(self, self.policy.replace("-", "_"))
        if self.policy not in ("first-fit", "hugepage-aware", "drain-fragmented", "numa-aware"):
            fitting = [n for n in fitting if self.hosts[n]["vms"]] or fitting[:1]
        if self.policy == "random":
            fitting = self.sample(fitting, vm, 1)
        if self.policy == "power-of-k":
            fitting = self.sample(fitting, vm, self.choices)
        return min(fitting, key=lambda n: (rank(n, vm, now), n), default=None)

    def sample(self, fitting, vm, choices):
        """Draw hosts one after the other; the last one takes the drawn one's place."""
        left, found, draw = list(fitting), [], self.draws[vm]
        while left and len(found) < choices:
            draw, at = divmod(draw, len(left))
            found.append(left[at])
            left[at] = left[0]
            del left[0]
        return found

    def first_fit(self, n, vm, now):
        return 0

    def next_fit(self, n, vm, now):
        return n - self.last if n >= self.last else n - self.last + len(self.hosts)

    def best_fit(self, n, vm, now):
        h = self.hosts[n]
        return (0, h["vcpus"], h["pages"]) if h["vms"] else (1,)

    def worst_fit(self, n, vm, now):
        return -self.hosts[n]["vcpus"], -self.hosts[n]["pages"]

    def random(self, n, vm, now):
        return 0

    power_of_k = worst_fit

    def shares(self, n, vm):
        """Return what the VM wants and what is free, as shares of the host."""
        _, _, *wanted = self.vms[vm]
        free = self.hosts[n]["vcpus"], self.hosts[n]["pages"]
        pairs = list(zip(wanted, free, self.total[n], strict=True))
        return [(share(w, total), share(f, total)) for w, f, total in pairs]

    def best_fit_l2(self, n, vm, now):
        _, _, vcpus, pages = self.vms[vm]
        h, (total_vcpus, total_pages) = self.hosts[n], self.total[n]
        left = share(h["vcpus"] - vcpus, total_vcpus), share(h["pages"] - pages, total_pages)
        return sum(part**2 for part in left)

    def dot_product(self, n, vm, now):
        return -sum(w * f for w, f in self.shares(n, vm))

    def cosine(self, n, vm, now):
        pairs = self.shares(n, vm)
        product = sum(w * f for w, f in pairs)
        norms = sum(w * w for w, _ in pairs) * sum(f * f for _, f in pairs)
        twice = isqrt(product**2 * 2**82 // norms)  # 2**41 times the cosine, rounded down
        return -((twice + 1) // 2)

    def lifetime_aligned(self, n, vm, now):
        ends = [self.expected_ends[other] for other in self.hosts[n]["vms"]]
        longer = Fraction(self.expected_ends[vm] - max([now, *ends]), HOUR)
        edge, width, lifetime_class = 0, 1, 0
        while longer > edge:
            edge, width, lifetime_class = edge + width, 2 * width, lifetime_class + 1
        return lifetime_class, self.best_fit(n, vm, now)

    lifetime_predicted = lifetime_aligned

    def hugepage_aware(self, n, vm, now):
        pages = self.vms[vm][3]
        whole = max(self.hosts[n]["pages"] - self.hosts[n]["broken"], 0)
        lacking = Fraction(max(pages - whole, 0), pages)
        return int(lacking * 16), self.best_fit(n, vm, now)

    def drain_fragmented(self, n, vm, now):
        h = self.hosts[n]
        if h["unusable"] >= 500:
            return 1, h["partial"]
        return 0, self.best_fit(n, vm, now)

    def home(self, n, vm):
        """Nodes of a host that a VM gets, its part of each, and whether all have room for it.

        As few as hold it, neighbours; if possible with vCPUs; the fullest with the most memory.
        """
        nodes, (_, _, vcpus, pages) = self.hosts[n]["nodes"], self.vms[vm]
        total_vcpus, total_pages = (total // len(nodes) for total in self.total[n])
        parts = 1
        while parts < len(nodes) and (parts * total_vcpus < vcpus or parts * total_pages < pages):
            parts += 1
        need = -(-vcpus // parts), -(-pages // parts)
        choices = [[(first + i) % len(nodes) for i in range(parts)] for first in range(len(nodes))]
        left = {}
        for first, taken in enumerate(choices):
            has_vcpus = all(nodes[i][0] >= need[0] for i in taken)
            left[first] = has_vcpus, min(nodes[i][1] for i in taken)
        best = max(left, key=lambda first: (left[first], -first))
        return choices[best], need, left[best] >= (True, need[1])

    def numa_aware(self, n, vm, now):
        taken, _, fits = self.home(n, vm)
        remote = (len(taken) > 1) if fits else 2
        if len(self.hosts[n]["nodes"]) == 1:
            remote = 0
        return remote, self.best_fit(n, vm, now)

    def leave(self, vm):
        host = self.hosts[self.host_of.pop(vm)]
        taken, need = self.homes.pop(vm)
        for i in taken:
            host["nodes"][i] = [a + b for a, b in zip(host["nodes"][i], need, strict=True)]
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
            chosen = self.choose(vm, now)
            if chosen is None:
                fits_empty = any(v >= vcpus and p >= pages for v, p in self.total)
                reason = "no_host_fits" if fits_empty else "larger_than_any_host"
                rejected.append((vm, now, reason))
                continue
            host = self.hosts[chosen]
            taken, need, _ = self.home(chosen, vm)
            self.homes[vm] = taken, need
            for i in taken:
                host["nodes"][i] = [a - b for a, b in zip(host["nodes"][i], need, strict=True)]
            host["vms"].add(vm)
            host["vcpus"] -= vcpus
            host["pages"] -= pages
            self.host_of[vm] = self.last = chosen
            commands.append((chosen, now, 1, vm))
        return sorted(commands), rejected

    def kill(self, vms):
        for vm in vms:
            if vm in self.host_of:
                self.leave(vm)
