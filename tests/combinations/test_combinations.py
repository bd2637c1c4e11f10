"""Every method with every engine, optimizer, server, scheme, division, uplink, and in packs: it works, or says why not."""

from __future__ import annotations

import math

import torch

from tests.combinations.covering import all_pairs, covering, pairs_of
from tests.combinations.page import PAGE, page
from tests.combinations.table import FACTORS, reason, refusals, rows, trainer_of
from tests.support.small import finish


def test_what_does_not_go_together_is_refused_in_one_line() -> None:
    for pair, why in refusals().items():
        assert "\n" not in why, why
        assert any(word.partition("=")[0] + "=" in why for words in dict(pair).values() for word in words.split()), "it names an option"


def test_the_rest_goes_together() -> None:
    """Every pair that is not refused, in some row: two rounds end with finite numbers, and the last run of a pack is the same alone."""
    covered = set().union(*map(pairs_of, rows()))
    assert covered | refusals().keys() == set(all_pairs(FACTORS)) and not covered & refusals().keys()
    for row in rows():
        seeds = (0, 1) if row["pack"] == "in a pack" else (0,)
        together = finish(trainer_of(row, *seeds))
        assert together.state.model.isfinite().all(), row
        for position, line in enumerate(together.evaluate(list(range(len(seeds))))):
            assert math.isfinite(line["train/loss"] or math.nan) and line["samples"] == together.runs[position].experiment.budget, row
            if position == 1:
                alone = finish(trainer_of(row, seeds[position]))
                assert torch.equal(alone.state.model[0], together.state.model[position]), row
                assert alone.evaluate()[0] == line, row


def test_a_row_holds_only_what_goes_together_and_hides_nothing() -> None:
    factors = {"a": ("1", "2", "3"), "b": ("1", "2"), "c": ("1", "2")}
    refused = {frozenset({("a", "1"), ("b", "1")}), frozenset({("a", "2"), ("c", "2")})}

    def works(row: object) -> bool:
        return row != {"a": "3", "b": "1", "c": "1"}  # three that do not go together, although every two of them do

    found = covering(factors, refused, works)
    covered = set().union(*map(pairs_of, found))
    assert covered == set(all_pairs(factors)) - refused
    assert all(works(row) for row in found)


def test_the_page_is_up_to_date() -> None:
    """`make combinations` writes it."""
    assert PAGE.read_text() == page()


def test_what_is_refused_alone_is_refused_with_more() -> None:
    """So that pairs say all there is to say about the rows."""
    for pair in list(refusals())[::7]:
        assert reason({**dict(pair), "engine": "engine=stacked"}) == refusals()[pair]
