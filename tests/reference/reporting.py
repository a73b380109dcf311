"""Free page reporting in plain Python, over the plain buddy allocator.

Written from mm/page_reporting.c of Linux 6.1: batches of 32, a budget for each list, watermarks
before a zone and before each block, reported blocks at the tails.  A block is reported until it
is taken off its list: allocated, split or merged.
"""

from reference.buddy import MOVABLE, PAGEBLOCK, TOP, ReferenceBuddy

CAPACITY = 32
FRESH_MAX = 255  # hostsim.mm.buddy counts up to here


class ReportingBuddy(ReferenceBuddy):
    def __init__(self, zones, relabels):
        super().__init__(zones, relabels)
        self.reported = set()  # first frames of blocks
        self.virgin = set(self.order_of)  # blocks never used

    def _remove(self, pfn, handed_out=False):
        super()._remove(pfn, handed_out)
        self.reported.discard(pfn)
        self.virgin.discard(pfn)

    def _add(self, pfn, order, migratetype, at_head):
        super()._add(pfn, order, migratetype, at_head)
        for counts in (self.fresh, self.burst):
            counts[pfn // PAGEBLOCK, order] = min(counts[pfn // PAGEBLOCK, order], FRESH_MAX)

    def free_in(self, zone):
        start, end = self.zones[zone]
        return sum(1 << o for pfn, o in self.order_of.items() if start <= pfn < end)

    def report_pass(self, lowest, low, minimum):
        """Return the blocks in the order in which the host is told, batches, whether to go on."""
        self.sent, self.batches, self.again = [], 0, False
        for zone in range(len(self.zones)):
            free = self.free_in(zone)
            if free <= low + (CAPACITY << lowest):
                continue
            self.batch = []
            for order in range(lowest, TOP + 1):
                for migratetype in range(4):
                    self._cycle(zone, migratetype, order, free - minimum)
            self._send()
        return self.sent, self.batches, self.again

    def _send(self):
        if self.batch:
            self.sent += reversed(self.batch)
            self.batches += 1
            self.batch = []

    def _cycle(self, zone, migratetype, order, spare):
        on = self.lists[zone, migratetype, order]
        budget = -(-self.nr_free(zone, migratetype, order) // (16 * CAPACITY))
        for pb in list(on):
            left = [
                pfn
                for pfn in self.blocks_in(pb, order)
                if pfn not in self.reported and pfn not in self.virgin
            ]
            for pfn in left:
                if len(self.batch) == CAPACITY and budget >= 0:
                    self._send()
                    budget -= 1
                self.again |= budget < 0
                held = sum(1 << o for _, o in self.batch)
                if budget < 0 or spare - held <= 1 << order:
                    at = on.index(pb)
                    on[:] = on[at:] + on[:at]
                    return
                self.batch.append((pfn, order))
                self.reported.add(pfn)
            if left:
                self._to_tail(zone, migratetype, order, pb)

    def _count(self, pb, order):
        return min(len(self.blocks_in(pb, order)), FRESH_MAX)

    def _to_tail(self, zone, migratetype, order, pb):
        on = self.lists[zone, migratetype, order]
        on.remove(pb)
        if order < 9:
            on.append(pb)
            self.fresh[pb, order] = self.burst[pb, order] = self._count(pb, order)
            if order == 8 and self.label[pb] != MOVABLE:
                self._make_movable(zone, migratetype, pb)
            return
        self.lists[zone, MOVABLE, order].append(pb)
        self.type_of[pb << 9] = MOVABLE
        for half in range(1 << (order - 9)):
            self.label[pb + half] = MOVABLE

    def _make_movable(self, zone, migratetype, pb):
        self.label[pb] = MOVABLE
        if not self.relabels:
            return
        for order in range(9):
            if not self.blocks_in(pb, order):
                continue
            self.lists[zone, migratetype, order].remove(pb)
            self.lists[zone, MOVABLE, order].append(pb)
            self.fresh[pb, order] = self.burst[pb, order] = self._count(pb, order)
            for pfn in self.blocks_in(pb, order):
                self.type_of[pfn] = MOVABLE
