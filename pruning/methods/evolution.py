"""The evolutionary search of one stage (SWP, docs/method.md 6), with one niche per size.

A stage's loss is to be low at every size, for sizes are only fixed when the stages are combined. So
the sizes between the narrowest and the whole stage are cut into as many niches as the population
has members; the parents of a generation are the best of every niche, as far as none of them beats
another in both size and loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .combine import pareto

TRIES = 20  # of a child that hasn't been rated yet
CROSSED = 0.7  # share of the children with two parents


@dataclass
class Archive:
    """All versions of a stage that were rated.

    Attributes:
        genes: grid numbers of the stage's gates, int16 [n, gates].
        losses: stage losses, float64 [n].
        generations: how many were rated.
    """

    genes: np.ndarray
    losses: np.ndarray
    generations: int = 0

    @classmethod
    def empty(cls, gates: int) -> "Archive":
        return cls(np.zeros((0, gates), np.int16), np.zeros(0))


def first_generation(sizes: np.ndarray, population: int, seed: list[int]) -> np.ndarray:
    """The narrowest, the whole, and versions of every width between them, int16 [n, gates].

    Args:
        sizes: number of grid widths of every gate, int [gates].
        population: most members, at least 2.
    """
    random = np.random.default_rng(seed)
    levels = np.linspace(0, 1, population)[:, None] * (sizes - 1)
    inner = levels[1:-1] + random.normal(0, 1, (population - 2, len(sizes)))
    genes = np.vstack([levels[:1], levels[-1:], inner])
    return _distinct(np.clip(np.rint(genes), 0, sizes - 1).astype(np.int16), set())


def next_generation(
    archive: Archive, saved: np.ndarray, sizes: np.ndarray, population: int, seed: list[int]
) -> np.ndarray:
    """Children of the best members, none of them rated before, int16 [n <= population, gates].

    Args:
        archive: at least one member.
        saved: what its members save of the stage's size, float [n].
        sizes: number of grid widths of every gate, int [gates].
    """
    random = np.random.default_rng(seed)
    parents = archive.genes[elite(saved, archive.losses, population)]
    known = {one.tobytes() for one in archive.genes}
    children = []
    for _ in range(population):
        for _ in range(TRIES):
            child = _child(parents, sizes, random)
            if child.tobytes() not in known:
                known.add(child.tobytes())
                children.append(child)
                break
    return np.array(children, np.int16).reshape(-1, len(sizes))


def elite(saved: np.ndarray, losses: np.ndarray, niches: int) -> np.ndarray:
    """Numbers of the members with the least loss in their niche that no other such one beats."""
    width = max(saved.max() - saved.min(), 1e-12) / niches
    niche = np.minimum(niches - 1, ((saved - saved.min()) / width).astype(int))
    best = [
        members[np.argmin(losses[members])]
        for members in (np.flatnonzero(niche == one) for one in range(niches))
        if len(members)
    ]
    best = np.array(best)
    return best[pareto(saved[best], losses[best])]


def _child(parents: np.ndarray, sizes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One or two parents' genes, about one of them changed by a step or two."""
    first, second = parents[random.integers(0, len(parents), 2)]
    child = first.copy()
    if random.random() < CROSSED:
        child = np.where(random.random(len(sizes)) < 0.5, first, second)
    changed = random.random(len(sizes)) < 1 / len(sizes)
    changed[random.integers(len(sizes))] = True
    steps = random.choice([-2, -1, 1, 2], len(sizes))
    return np.clip(child + changed * steps, 0, sizes - 1).astype(np.int16)


def _distinct(genes: np.ndarray, known: set[bytes]) -> np.ndarray:
    """The genes without repetitions, in their order."""
    kept = []
    for one in genes:
        if one.tobytes() not in known:
            known.add(one.tobytes())
            kept.append(one)
    return np.array(kept, genes.dtype)


def evolve(
    archive: Archive,
    rate: Callable[[np.ndarray], np.ndarray],
    saved: Callable[[np.ndarray], np.ndarray],
    sizes: np.ndarray,
    *,
    population: int,
    generations: int,
    seed: list[int],
    done: Callable[[], None],
) -> None:
    """Rates generations until the archive has `generations` of them, changing it in place.

    Args:
        rate: genes int16 [n, gates] -> losses float64 [n]. saved: genes -> savings float64 [n].
        seed: every generation draws from this and its own number alone.
        done: called when a generation is in the archive.
    """
    while archive.generations < generations:
        own = [*seed, archive.generations]
        if archive.generations:
            genes = next_generation(archive, saved(archive.genes), sizes, population, own)
        else:
            genes = first_generation(sizes, population, own)
        if len(genes):
            archive.losses = np.concatenate([archive.losses, rate(genes)])
            archive.genes = np.concatenate([archive.genes, genes])
        archive.generations += 1
        done()
