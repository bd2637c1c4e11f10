"""What a peer is given and asked: the plain loop's images, crop, flip and model, and what a script prints."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from benchmarks.plain import PlainFedAvg

CLIENTS, COHORT, IMAGES = 100, 10, 50_000
CORES = os.cpu_count() or 1
WARM_UP = 3
"""First rounds that do not count: data is made and memory allocated in them."""


@lru_cache(maxsize=1)
def plain(J: int, batch_size: int) -> PlainFedAvg:
    """The plain loop over made-up images of CIFAR-100's shapes; made once in a process."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(IMAGES, 3, 32, 32, generator=generator).sub_(0.5).mul_(12**0.5)  # uniform pixels, normalised
    shards = list(torch.randperm(IMAGES, generator=generator).chunk(CLIENTS))
    return PlainFedAvg(images, torch.arange(IMAGES) % 100, shards, cohort=COHORT, J=J, batch_size=batch_size)


def batches(loop: PlainFedAvg, client: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A client's J mini-batches of a round: images of its shard in a new order, cropped and flipped."""
    shard = loop.shards[client]
    order = shard[torch.randperm(len(shard))]
    for j in range(loop.J):
        indices = order[j * loop.batch_size : (j + 1) * loop.batch_size]
        yield loop.augmented(indices), loop.labels[indices]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments that all peers take."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--J", type=int, default=4, help="local steps")
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--rounds", type=int, default=12, help=f"of each setting; the first {WARM_UP} do not count")
    return arguments


def median_round(ends: list[float]) -> float:
    """Median seconds of the rounds after the warm-up. ends: when each round ended."""
    if len(ends) <= WARM_UP:
        raise SystemExit(f"at least {WARM_UP + 1} rounds: the first {WARM_UP} do not count")
    return statistics.median(end - began for began, end in zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False))


def report(peer: str, version: str, settings: dict[str, float]) -> None:
    """Print the line that the benchmark reads. settings: median seconds of a round in each setting, of which the best counts."""
    best = min(settings, key=settings.__getitem__)
    found = {"peer": peer, "version": version, "seconds_per_round": settings[best], "setting": best, "settings": settings}
    print(json.dumps(found), flush=True)
