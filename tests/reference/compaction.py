"""Both scanners of a compaction of the whole zone in plain Python, one letter a frame.

.  free    A  movable    K  not movable    p  freed to a per-CPU list, or taken
"""

PAGEBLOCK = 512
CLUSTER = 32
BUDDY_MAX = 256  # pages of the largest block inside a pageblock that is partly used


def block_at(cells, first):
    """Pages of the buddy block that begins at a frame, 0 if none does."""
    if cells[first] != ".":
        return 0
    size = 1
    while (
        size < BUDDY_MAX
        and first % (2 * size) == 0
        and not cells[first : first + 2 * size].strip(".")
    ):
        size *= 2
    buddy = first ^ size
    if size < BUDDY_MAX and not cells[buddy : buddy + size].strip("."):
        return 0  # the second half of a larger block
    return size


class Compaction:
    """A run over ``cells``; afterwards ``moves`` leads from old to new frames."""

    def __init__(self, cells, target_blocks, era_6_12, spare):
        self.cells, self.target_blocks, self.era_6_12, self.spare = (
            cells,
            target_blocks,
            era_6_12,
            spare,  # free pages that must stay
        )
        self.free_at = len(cells) - PAGEBLOCK
        self.moves, self.targets, self.wanted = {}, [], 0

    def put(self, first, letters):
        self.cells = self.cells[:first] + letters + self.cells[first + len(letters) :]

    def take_block(self, at, end, stride, found):
        """Scan one target pageblock; return where the scan stopped."""
        while at < end:
            size = block_at(self.cells, at)
            if size == 0:
                at += stride
                continue
            if self.cells.count(".") <= self.spare + size:
                return at
            found.append((at, size))
            self.put(at, "p" * size)
            at += size
            if sum(s for _, s in found) >= self.wanted:
                return at
            at += stride - 1
        return end

    def isolate_free(self, migrate):
        at, block, stride, found = self.free_at, self.free_at, 1, []
        block -= block % PAGEBLOCK
        while block > migrate - migrate % PAGEBLOCK:
            end = block + PAGEBLOCK
            if block // PAGEBLOCK in self.target_blocks:
                before = len(found)
                at = self.take_block(at, end, stride, found)
                if sum(s for _, s in found) >= self.wanted:
                    at = at if at < end else block - PAGEBLOCK
                    break
                if at < end:
                    break
                stride = 1 if len(found) > before else min(CLUSTER, 2 * stride)
            block -= PAGEBLOCK
            at = block
        self.free_at = at
        if self.era_6_12:  # smallest blocks first, upward
            found.sort(key=lambda b: b[1])
            self.targets = [first + i for first, size in found for i in range(size)]
        else:  # last block first, downward
            self.targets = [first + i for first, size in found for i in range(size)][::-1]

    def migrate_all(self, source, migrate):
        self.wanted = len(source)
        for old in reversed(source):
            if not self.targets:
                self.isolate_free(migrate)
            if not self.targets:
                return
            new = self.targets.pop(0)
            self.wanted -= self.era_6_12
            self.moves[old] = new
            self.put(old, "p")
            self.put(new, "A")

    def run(self):
        migrate, last = 0, 0
        while self.free_at // PAGEBLOCK > migrate // PAGEBLOCK:
            block = migrate // PAGEBLOCK
            end = (block + 1) * PAGEBLOCK
            if end > self.free_at:
                migrate = end
                continue
            limit = PAGEBLOCK if last == block else CLUSTER
            source = []
            while migrate < end and len(source) < limit:
                if self.cells[migrate] == "A":
                    source.append(migrate)
                migrate += 1
            if source:
                last = block
                self.migrate_all(source, migrate)
        return self.moves
