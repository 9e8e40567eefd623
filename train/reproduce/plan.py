"""Which runs the tables need, and the size of everything. Knows settings only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from train.reproduce.runs import Run

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Plan:
    """train, val, test: problems; of a real data set at most so many. long: steps of the runs over `few` problems
    that go on after over-fitting. text: characters of unrelated text to read, at most.
    """

    steps: int = 640
    train: int = 2400
    val: int = 240
    test: int = 720
    few: int = 320
    long: tuple[int, ...] = (160, 320, 640)
    text: int = 16_384
    batch_size: int = 8

    @property
    def counts(self) -> dict[str, int]:
        """Problems by split."""
        return {"train": self.train, "val": self.val, "test": self.test}


FULL = Plan()
QUICK = Plan(steps=3, train=32, val=8, test=32, few=16, long=(2, 3, 4), text=2000, batch_size=8)


def runs(plan: Plan, layers: int) -> list[Run]:
    """All runs, the longest first. layers: of the base."""
    adapter = Run("", steps=plan.steps, batch_size=plan.batch_size)
    visual = replace(adapter, pictures=True)
    found = [
        replace(adapter, name="full", method="full", forgetting=True),
        *(
            replace(visual, name=f"long-{steps}", steps=steps, questions=plan.few)
            for steps in sorted(plan.long, reverse=True)
        ),
        replace(visual, name="zero-0", forgetting=True),
        replace(adapter, name="text", forgetting=True),
        replace(adapter, name="lora", method="lora", forgetting=True),
        *(replace(visual, name=f"random-{seed}", init="random", seed=seed) for seed in SEEDS),
        *(replace(visual, name=f"zero-{seed}", seed=seed) for seed in SEEDS[1:]),
        *(replace(visual, name=f"layers-{count}", layers=count) for count in shares(layers)[:2]),
        Run("base", "base", forgetting=True),
    ]
    return found


def shares(layers: int) -> tuple[int, int, int]:
    """A third, two thirds and all of the layers."""
    return layers // 3, 2 * layers // 3, layers
