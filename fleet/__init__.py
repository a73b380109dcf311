"""Many hosts: scenarios, traces, placement, shards on Ray, results."""
