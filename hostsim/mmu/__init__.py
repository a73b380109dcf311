"""The hardware half of address translation: TLBs, walk caches, page walks, their cost."""
