"""Clients that are not always there."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fl_hydra.participation.availability import Cyclic, Diurnal
from tests.support.cohorts import simulate


def test_cyclic_blocks_take_turns_in_an_order_of_the_run() -> None:
    cohorts = [cohort.ids.tolist() for cohort in simulate(Cyclic(turn=2), 5, 16)]
    assert cohorts[0::2] == cohorts[1::2]
    assert sorted(itertools.chain(*cohorts[:8:2])) == list(range(20)), "in each pass everyone takes part once"
    assert cohorts[:8] == cohorts[8:]
    assert cohorts[:8] != [cohort.ids.tolist() for cohort in simulate(Cyclic(turn=2), 5, 8, seed=1)]
    blocks = [set(cohort.ids.tolist()) for cohort in simulate(Cyclic(blocks=2), 5, 400)]
    even, odd = set.union(*blocks[::2]), set.union(*blocks[1::2])
    assert (len(even), len(odd), even & odd) == (10, 10, set())


def test_diurnal_clients_are_there_by_their_hour() -> None:
    K, period = 400, 8
    sizes = np.ones(K, np.int64)
    cohorts = simulate(Diurnal(period=period), 40, 240, sizes=sizes)
    taken = np.zeros((period, K))
    for round, cohort in enumerate(cohorts):
        taken[round % period, cohort.ids] += 1
    share = taken / 30
    # Half of all are there on average: a client takes part with probability p_k(r) m / (K / 2), on average 1/10; over a day that is a wave
    # with half the swing of its mean.
    wave = 2 * np.abs(np.fft.fft(share, axis=0)[1]) / period
    assert share.mean() == pytest.approx(0.1)
    assert wave.mean() == pytest.approx(0.1, rel=0.25)
    phase = np.angle(np.fft.fft(share, axis=0)[1])
    assert np.abs(np.exp(1j * phase).mean()) < 0.2, "phases are uniform"
