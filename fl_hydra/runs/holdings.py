"""What each client holds and how likely it is to take part, as a run records it for the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_hydra.arrays import Indices
from fl_hydra.sharding.base import Shards
from fl_hydra.training.experiment import Experiment

MOST = 1_000_000
"""The most counts that are recorded; for more clients or classes, only sizes are."""


def holdings(experiment: Experiment, shards: Shards) -> dict[str, Any]:
    """Plain values for `clients.json`.

    kind: `classes` of images or target `characters` of text. names: of these. counts: of each client's samples, [K][names]; None where
    they are too many. sizes: samples of each client. probabilities: of each client to be drawn first in a round; None where all that hold
    samples are alike, or where it depends on what is trained.
    """
    from fl_hydra.data.shakespeare import TextDataset
    from fl_hydra.participation.schemes import probabilities

    e = experiment
    if isinstance(e.dataset, TextDataset):
        kind, (names, counts) = "characters", character_counts(experiment, shards)
    else:
        labels = e.dataset.sample_owners(e.data, e.split_seed).labels
        assert labels is not None
        kind, names, counts = (
            "classes",
            [str(each) for each in range(e.dataset_info.classes)],
            shards.label_counts(labels, e.dataset_info.classes),
        )
    drawn = None if e.gamma is None else probabilities(e.gamma, e.K, e.seed, e.participation.kept_away).tolist()
    return {
        "kind": kind,
        "names": names,
        "counts": counts.tolist() if counts.size <= MOST else None,
        "sizes": shards.sizes.tolist(),
        "probabilities": drawn,
    }


def character_counts(experiment: Experiment, shards: Shards) -> tuple[list[str], Indices]:
    """The characters that are targets somewhere, and how often each is one among a client's samples, int64 [K, characters]."""
    from fl_hydra.data.shakespeare import TextDataset
    from fl_hydra.data.shakespeare_text import LEAF_ALPHABET, SEQUENCE_ALPHABET

    assert isinstance(experiment.dataset, TextDataset)
    split = experiment.dataset.split(experiment.data, experiment.split_seed)
    everywhere = experiment.dataset_info.everywhere
    alphabet = "\0" + SEQUENCE_ALPHABET + "\0\0\0" if everywhere else LEAF_ALPHABET
    width, first = (experiment.dataset_info.shape[0], 1) if everywhere else (1, experiment.dataset_info.shape[0])
    targets = split.characters[split.train[:, None] + first + np.arange(width)]
    owners = np.repeat(np.arange(len(shards.sizes)), shards.sizes)
    flat = (owners[:, None] * len(alphabet) + targets[shards.indices]).ravel()
    counts = np.bincount(flat, minlength=len(shards.sizes) * len(alphabet)).reshape(-1, len(alphabet))
    shown = [code for code in range(len(alphabet)) if counts[:, code].any() and alphabet[code] != "\0"]
    return [alphabet[code] for code in shown], counts[:, shown]
