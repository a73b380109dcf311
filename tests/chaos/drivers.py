"""Kills drivers in the middle of writing: ``drivers.py FOLDER SEED KILLS`` prints a line a kill.

Each driver is a fork of this process, so that one costs a fraction of a second. Nodes are fakes:
what is tested is what is written when.
"""

import os
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from chaos import WriteFaults, die, digest, draw, leftovers
from fakenode import FakeNode
from tiny import SMALL

from fleet import scheduler
from fleet.loading import build
from fleet.shard import InlineBackend

EVERY = 2  # epochs between checkpoints


def run(out, at=0, resume=False):
    """Run the small scenario on fake nodes; return how many steps it took to write it."""
    scenario = build(tomllib.loads(SMALL), "small", "small.toml", ["run.duration=4h"])
    options = scheduler.Options(resume=resume, checkpoint_epochs=EVERY)
    with WriteFaults(at, die).installed() as faults:
        scheduler.run(scenario, out, options, None, lambda s: InlineBackend(s, FakeNode))
    return faults.count


def in_fork(*arguments):
    """Run in a process of its own; return the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(*arguments)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def main(folder, seed, nr_kills):
    steps = run(folder / "whole")
    expected = digest(folder / "whole")
    wrong = 0
    for kill in range(nr_kills):
        out = folder / str(kill)
        at = 1 + int(steps * draw(seed, kill))
        first = in_fork(out, at)
        again = in_fork(out, 1 + int(steps * draw(seed, kill, "again")), True)  # may end before
        last = in_fork(out, 0, True)
        right = (first, last) == (9, 0) and digest(out) == expected and not leftovers(out)
        wrong += not right
        verdict = "same bytes" if right else f"WRONG {first} {again} {last} {leftovers(out)}"
        sys.stdout.write(f"step {at:4d} of {steps}: {verdict}\n")
    return wrong


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
