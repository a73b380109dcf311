"""TLBs, walk caches and walks in plain Python: an oracle that shares nothing with the kernels."""


class Lru:
    """A set-associative LRU store as one list a set, most recent last."""

    def __init__(self, sets, ways):
        self.sets = [[] for _ in range(sets)]
        self.ways = ways

    def find(self, page, key):
        row = self.sets[page % len(self.sets)]
        for i, (other, value) in enumerate(row):
            if other == key:
                row.append(row.pop(i))
                return (value,)
        return None

    def add(self, page, key, value):
        row = self.sets[page % len(self.sets)]
        row.append((key, value))
        if len(row) > self.ways:
            row.pop(0)


class PlainMmu:
    """TLBs, walk caches and two-dimensional walks over dicts of pages, in plain Python.

    ``guest`` and ``ept`` map (level, page >> 9 * (level - 1)) to ("leaf", frame) or
    ("table", frame of the table); ``stores`` maps names to Lru.
    """

    def __init__(self, guest, ept, levels, stores):
        self.guest, self.ept, self.levels, self.stores = guest, ept, levels, stores
        self.l1 = self.l2 = self.walks = 0
        self.reads = {}

    def access(self, vpn):
        for size in range(3):
            page = vpn >> 9 * size
            found = self.stores["l1", size].find(page, (size, page))
            if found:
                self.l1 += 1
                return found[0] + vpn - (page << 9 * size)
        for size in range(3):
            page = vpn >> 9 * size
            if ("l2", size) not in self.stores:
                continue
            found = self.stores["l2", size].find(page, (size, page))
            if found:
                self.l2 += 1
                self.stores["l1", size].add(page, (size, page), found[0])
                return found[0] + vpn - (page << 9 * size)
        self.walks += 1
        frame, size = self.walk(vpn)
        if frame is None:
            return None
        page = vpn >> 9 * size
        base = frame - (vpn - (page << 9 * size))
        for level in ("l2", "l1"):
            if (level, size) in self.stores:
                self.stores[level, size].add(page, (size, page), base)
        return frame

    def read(self, kind, level):
        self.reads[kind, level] = self.reads.get((kind, level), 0) + 1

    def down(self, name, tables, kind, page, before_read):
        """Walk one set of tables; return frame and size."""
        for start in range(1, self.levels):
            part = page >> 9 * start
            found = self.stores[name, start].find(part, part) if (name, start) in self.stores else 0
            if found:
                break
        else:
            start, found = self.levels, None
        table = found[0] if found else tables["root"]
        for level in range(start, 0, -1):
            if not found:
                before_read(table)
            found = None
            self.read(kind, level)
            what, frame = tables.get((level, page >> 9 * (level - 1)), ("none", None))
            if what == "leaf":
                return frame + page % (1 << 9 * (level - 1)), level - 1
            if what == "none":
                return None, 0
            table = frame
            part = page >> 9 * (level - 1)
            if (name, level - 1) in self.stores:
                self.stores[name, level - 1].add(part, part, frame)
        raise AssertionError("a table below level 1")

    def walk(self, vpn):
        frame, size = self.down("pwc", self.guest, "guest", vpn, self.table)
        if frame is None or self.ept is None:
            return frame, size
        frame, other = self.down("ept", self.ept, "data", frame, lambda table: None)
        return frame, min(size, other)

    def table(self, gfn):
        if self.ept is None:
            return
        nested = self.stores["nested"]
        for size in range(3):
            if nested.find(gfn >> 9 * size, (size, gfn >> 9 * size)):
                return
        _, size = self.down("ept", self.ept, "table", gfn, lambda table: None)
        nested.add(gfn >> 9 * size, (size, gfn >> 9 * size), None)
