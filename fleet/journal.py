"""What brings a lost shard back: a checkpoint, and what was asked of all shards since.

Recomputation gives the same bytes, so a shard that a dead worker took with it is made anew,
restored from the last checkpoint (or made from the seed, if there is none) and given the same
commands and immigrants again; rows and emigrants of epochs that were collected already are thrown
away. A journal is as long as the time between checkpoints, or as the run if there are none: some
KiB an epoch, and the memory of the VMs that moved.
"""

from fleet.shard import Load, Step


class Journal:
    """The epochs submitted since the last checkpoint, and how to read that."""

    def __init__(self) -> None:
        self.epoch = 0  # of the checkpoint
        self.load: Load | None = None  # None: from the seed
        self.steps: list[list[Step]] = []  # by epoch and shard

    def begin(self, epoch: int, load: Load) -> None:
        """Begin anew at a checkpoint."""
        self.epoch, self.load = epoch, load
        self.steps = [steps for steps in self.steps if steps[0].epoch >= epoch]

    def note(self, steps: list[Step]) -> None:
        """Note an epoch that is about to be submitted."""
        self.steps.append(steps)

    def before(self, epoch: int) -> list[list[Step]]:
        """Return the epochs to compute again for a shard that is to run an epoch next."""
        return [steps for steps in self.steps if steps[0].epoch < epoch]
