"""The buddy allocator in plain Python: one dict of free blocks, one list a zone, type and order.

Single blocks only.  What it shares with the real one is the documented behaviour:

* a request takes the head of the shortest sufficient list and keeps the lower half of a split;
  upper halves go to the heads of the shorter lists;
* a freed block merges with free buddies of its own order, up to order 10, and goes to the head
  of its list, or to its tail if the buddy of the would-be parent is free (orders 0..8);
* lists of orders 0..8 hold pageblocks: one that gains a block of the order at the head moves to
  the front, at the tail it keeps its place; of its blocks the lowest is taken first;
* as many blocks as a pageblock gained since it came to the front are taken from it in a row, then
  it goes to the end of the list; its older ones are taken in such bursts too;
* the free pages of one pageblock stand on lists of one type, its label's if it was full;
* since 6.10 a pageblock that merges to order 10 takes over the label of the other half.
"""

PAGEBLOCK = 512
TOP = 10
MOVABLE = 1


class ReferenceBuddy:
    def __init__(self, zones, relabels):
        self.relabels = relabels  # a merge to order 10 gives both halves one label
        self.order_of = {}  # first frame of a free block -> its order
        self.type_of = {}  # first frame of a free block -> type of its list
        self.lists = {}  # (zone, type, order) -> pageblocks, head first
        self.label = {}  # pageblock -> type
        self.fresh = {}  # pageblock, order -> blocks to take before it goes to the end
        self.burst = {}  # pageblock, order -> blocks it gained in a row
        self.zones = zones  # (first frame, end frame)
        for z, (start, end) in enumerate(zones):
            for t in range(4):
                for order in range(TOP + 1):
                    self.lists[z, t, order] = []
            for pfn in range(start, end, 1 << TOP):
                self._add(pfn, TOP, MOVABLE, at_head=False)
            for pb in range(start // PAGEBLOCK, end // PAGEBLOCK):
                self.label[pb] = MOVABLE

    def zone_of(self, pfn):
        return next(z for z, (start, end) in enumerate(self.zones) if start <= pfn < end)

    def blocks_in(self, pb, order):
        """First frames of the free blocks of an order in a pageblock."""
        span = range(pb * PAGEBLOCK, (pb + 1) * PAGEBLOCK, 1 << order)
        return [pfn for pfn in span if self.order_of.get(pfn) == order]

    def nr_free(self, zone, migratetype, order):
        pageblocks = self.lists[zone, migratetype, order]
        if order >= 9:
            return len(pageblocks)
        return sum(len(self.blocks_in(pb, order)) for pb in pageblocks)

    def free_frames(self):
        return {
            frame
            for pfn, order in self.order_of.items()
            for frame in range(pfn, pfn + (1 << order))
        }

    def _add(self, pfn, order, migratetype, at_head):
        pb = pfn // PAGEBLOCK
        on = self.lists[self.zone_of(pfn), migratetype, order]
        self.order_of[pfn] = order
        self.type_of[pfn] = migratetype
        if pb not in on:
            on.insert(0 if at_head else len(on), pb)
            self.fresh[pb, order] = self.burst[pb, order] = 1
        elif at_head and on[0] != pb:
            on.remove(pb)
            on.insert(0, pb)
            self.fresh[pb, order] = self.burst[pb, order] = 1
        else:
            self.fresh[pb, order] += 1
            self.burst[pb, order] = max(self.burst[pb, order], self.fresh[pb, order])

    def _remove(self, pfn, handed_out=False):
        order, migratetype = self.order_of.pop(pfn), self.type_of.pop(pfn)
        pb = pfn // PAGEBLOCK
        on = self.lists[self.zone_of(pfn), migratetype, order]
        left = len(self.blocks_in(pb, order))
        if order >= 9 or not left:
            on.remove(pb)
            return
        self.fresh[pb, order] -= 1
        if self.fresh[pb, order] == 0:
            self.fresh[pb, order] = min(left, self.burst[pb, order])
            if handed_out:
                on.remove(pb)
                on.append(pb)

    def alloc(self, zone, migratetype, order):
        """Return the first frame of a block, or None."""
        for current in range(order, TOP + 1):
            pageblocks = self.lists[zone, migratetype, current]
            if not pageblocks:
                continue
            pb = pageblocks[0]
            pfn = pb * PAGEBLOCK if current >= 9 else min(self.blocks_in(pb, current))
            self._remove(pfn, handed_out=True)
            while current > order:
                current -= 1
                self._add(pfn + (1 << current), current, migratetype, at_head=True)
            return pfn
        return None

    def list_type(self, pb):
        """Type of the lists on which the free pages of a pageblock stand."""
        for pfn in range(pb * PAGEBLOCK, (pb + 1) * PAGEBLOCK):
            if pfn in self.type_of:
                return self.type_of[pfn]
        return self.label[pb]

    def free(self, pfn, order):
        freed = pfn // PAGEBLOCK
        migratetype = self.list_type(freed)
        while order < TOP:
            buddy = pfn ^ (1 << order)
            if self.order_of.get(buddy) != order:
                break
            self._remove(buddy)
            if order == 9 and self.relabels:
                self.label[buddy // PAGEBLOCK] = self.label[freed]
            pfn = min(pfn, buddy)
            order += 1
        if order >= 9:
            migratetype = self.label[freed]
        parent_buddy = pfn & ~((2 << order) - 1) ^ (2 << order)
        merges_soon = order <= 8 and self.order_of.get(parent_buddy) == order + 1
        self._add(pfn, order, migratetype, at_head=not merges_soon)

    def claim(self, zone, order, old_type, new_type):
        """Relabel the head block of a list of order 9 or 10, to the tail of another type's."""
        pb = self.lists[zone, old_type, order][0]
        self._remove(pb * PAGEBLOCK)
        for i in range(1 << (order - 9)):
            self.label[pb + i] = new_type
        self._add(pb * PAGEBLOCK, order, new_type, at_head=False)
