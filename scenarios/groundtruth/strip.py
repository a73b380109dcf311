#!/usr/bin/env python3
"""strip.py RECORDING_DIR: write start/NAME.jsonl from NAME.run1.jsonl: the first snapshot whole, of the later ones only label and time."""

import json
import pathlib
import sys

rec = pathlib.Path(sys.argv[1])
(rec / "start").mkdir(exist_ok=True)
for path in rec.glob("*.run1.jsonl"):
    snaps = [
        d for d in map(json.loads, (l for l in open(path) if l.startswith("{"))) if "snapshot" in d
    ]
    lines = [snaps[0]] + [{"snapshot": s["snapshot"], "t_ms": s["t_ms"]} for s in snaps[1:]]
    (rec / "start" / f"{path.name.split('.run')[0]}.jsonl").write_text(
        "".join(json.dumps(d) + "\n" for d in lines)
    )
