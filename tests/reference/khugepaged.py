"""khugepaged's passes over a plain list, as mm/khugepaged.c walks it."""


class Khugepaged:
    """The list of processes, the cursor and the budget of a pass.

    A process is a list of windows, each the word that a look at it answers: "skip", "huge" (a
    collapse) or "fail" (no huge page to be had); an empty list is an unsuitable area.
    """

    def __init__(self):
        self.mms = {}  # name -> windows, in the order of the list
        self.cursor = None
        self.window = 0
        self.full_scans = 0
        self.examined = []

    def exit(self, name):
        """Take a process off; the cursor moves on when khugepaged next runs."""
        if name == self.cursor:
            self.mms[name] = None
        else:
            del self.mms[name]

    def _scan_mm_slot(self, budget):
        if self.cursor is None:
            self.cursor, self.window = next(iter(self.mms)), 0
        windows = self.mms[self.cursor]
        progress, found = 1, ""
        if windows is not None:
            if not windows:
                progress += 1
            while self.window < len(windows):
                found = windows[self.window]
                self.examined.append((self.cursor, self.window))
                if found == "huge":
                    windows[self.window] = "skip"
                self.window += 1
                progress += 512
                if found != "skip" or progress >= budget:
                    return progress, found
            progress += 1
        names = list(self.mms)
        at = names.index(self.cursor)
        gone, self.window = self.cursor, 0
        self.cursor = names[at + 1] if at + 1 < len(names) else None
        if self.cursor is None:
            self.full_scans += 1
        if windows is None:
            del self.mms[gone]
        return progress, ""

    def do_scan(self, pages):
        """Run one pass; return how many windows it looked at."""
        before = len(self.examined)
        progress = heads = failures = 0
        while progress < pages:
            heads += self.cursor is None
            if not self.mms or heads == 2:
                break
            used, found = self._scan_mm_slot(pages - progress)
            progress += used
            failures += found == "fail"
            if progress >= pages or failures == 2:
                break
        return len(self.examined) - before
