"""What cannot be chosen together: one table, in the order in which it is looked at.

Constraints between two or more groups belong here. What concerns one option alone is checked by that option, and what a
key can tell by :class:`fl_hydra.config.Config`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from fl_hydra.algorithms.base import Algorithm
from fl_hydra.config import Config
from fl_hydra.errors import UserError
from fl_hydra.local_steps.base import LocalSteps
from fl_hydra.participation.base import Participation


@dataclass(frozen=True)
class Choice:
    """A configuration with its sizes worked out: K clients or workers, of which a fraction C, that is m, are in a round of J steps.

    labelled: whether samples have labels: images have, and texts have not.
    """

    config: Config
    K: int
    C: float
    m: int
    J: int | None
    labelled: bool

    @property
    def algorithm(self) -> Algorithm:
        """The method."""
        return self.config.algorithm

    @property
    def local_steps(self) -> LocalSteps:
        """The rule for J."""
        return self.config.local_steps

    @property
    def participation(self) -> Participation:
        """The scheme that draws cohorts."""
        return self.config.participation

    @property
    def measures_noise(self) -> bool:
        """Whether the gradient noise scale is measured."""
        return self.config.noise_scale or "noise" in self.local_steps.measures

    @property
    def local_statistics(self) -> bool:
        """Whether running statistics stay with clients."""
        return self.config.model.statistics == "local"

    @property
    def judged(self) -> bool:
        """Whether clients are judged on data of their own."""
        return self.algorithm.personalised or self.local_statistics or self.config.evaluation.personal is not None

    @property
    def equal_steps(self) -> bool:
        """Whether every row takes the same number of steps in every round."""
        return self.local_steps.steady and not self.local_steps.spread

    @property
    def fewest_steps(self) -> int:
        """Local steps of the client that takes fewest in a whole round, with J of them on average."""
        assert self.J is not None
        return max(1, self.J - round(self.J * self.local_steps.spread))

    @property
    def unequal(self) -> str:
        """What makes numbers of steps differ, as it is typed."""
        rule = self.local_steps
        return f"local_steps.spread={rule.spread}" if rule.steady else f"local_steps={rule.name}"

    @property
    def without(self) -> str:
        """How to do without it."""
        return f"leave {self.unequal.partition('=')[0]} out"

    @property
    def no_comparison(self) -> str:
        """Why workers cannot be compared, as measuring their noise or drift does."""
        lone = f"{self.m} worker in a round has no other: take more"
        return lone if self.algorithm.synchronous else f"algorithm={self.algorithm.name} has no such rounds"

    @property
    def comparing(self) -> str:
        """What compares workers, as it is typed."""
        return "noise_scale=true" if self.config.noise_scale else f"local_steps={self.local_steps.name}"

    @property
    def difference_of_speeds(self) -> str:
        """What makes speeds differ, as it is typed."""
        how = self.config.speeds.differ_by
        return f"speeds.{how}={getattr(self.config.speeds, how, None)}"

    @property
    def slowness(self) -> float:
        """How many times as slow as the fastest the slowest worker is."""
        speeds = self.config.speeds.draw(self.K, self.config.seed)
        return float(speeds.max() / speeds.min())


Requirement = tuple[Callable[[Choice], bool], str]
"""Whether a choice can be run, and, formatted with it as `c`, one line that says what is wrong, what is allowed and what to do."""

REQUIREMENTS: tuple[Requirement, ...] = (
    (
        lambda c: c.config.data_parallel == 1 or (c.K == 1 and not c.algorithm.federated and c.algorithm.synchronous),
        "data_parallel={c.config.data_parallel}: shares the steps of centralized training among workers; workers of "
        "algorithm={c.algorithm.name} step by themselves: leave it out, or choose algorithm=centralized",
    ),
    (
        lambda c: c.config.data_parallel <= c.config.batch_size,
        "data_parallel={c.config.data_parallel}: each worker needs a sample of a batch; choose 1 to batch_size={c.config.batch_size}",
    ),
    (
        lambda c: c.algorithm.ends_with_mean or c.config.server.averages,
        "algorithm={c.algorithm.name} ends a round without a mean, from which an outer optimizer could step; leave server out",
    ),
    (
        lambda c: not (c.measures_noise or "drift" in c.local_steps.measures) or (c.m > 1 and c.algorithm.synchronous),
        "{c.comparing}: compares workers that begin a round with equal models and end it with their mean; {c.no_comparison}",
    ),
    (
        lambda c: "drift" not in c.local_steps.measures or not c.algorithm.coupled,
        "local_steps={c.local_steps.name}: workers of algorithm={c.algorithm.name} exchange models within a round, which hides how far "
        "they drift apart; choose another rule",
    ),
    (
        lambda c: c.algorithm.J is not None or c.equal_steps,
        "{c.unequal}: algorithm={c.algorithm.name} has no J to choose; {c.without}",
    ),
    (
        lambda c: not c.local_steps.spread or not c.algorithm.lockstep or c.algorithm.federated,
        "local_steps.spread={c.local_steps.spread}: workers of algorithm={c.algorithm.name} take all J steps of a period, to be averaged "
        "after it; leave local_steps.spread out",
    ),
    (
        lambda c: not c.local_steps.spread or not c.algorithm.lockstep,
        "local_steps.spread={c.local_steps.spread}: clients of algorithm={c.algorithm.name} take J steps of each kind; leave "
        "local_steps.spread out",
    ),
    (
        lambda c: not c.participation.dropout or c.algorithm.federated,
        "participation.dropout={c.participation.dropout}: clients of federated algorithms drop out, and algorithm={c.algorithm.name} has "
        "workers; leave it out",
    ),
    (
        lambda c: c.participation.held_out is None or c.algorithm.federated,
        "participation.held_out={c.participation.held_out}: clients of federated algorithms are held out, and algorithm={c.algorithm.name} "
        "has workers; leave it out",
    ),
    (
        lambda c: not c.participation.dropout or "drift" not in c.local_steps.measures,
        "participation.dropout={c.participation.dropout}: a rule that measures drift needs all ends of a round; choose other local_steps",
    ),
    (
        lambda c: not c.participation.weighs or not c.algorithm.needs_ends,
        "participation={c.participation.name}: weighs updates by how likely they were, and algorithm={c.algorithm.name} uses more of a "
        "round than a weighted sum; choose another scheme",
    ),
    (
        lambda c: c.config.evaluation.personal is None or c.algorithm.federated,
        "evaluation.personal={c.config.evaluation.personal}: judges clients on data of their own, and algorithm={c.algorithm.option} has "
        "workers; leave it out",
    ),
    (
        lambda c: c.config.evaluation.personal != "shards" or c.config.sharding.name == "natural" or c.labelled,
        "evaluation.personal=shards: windows of a text overlap, so that with sharding={c.config.sharding.name} those that are withheld are "
        "in what other clients train with; choose sharding=natural, or evaluation.personal=dealt",
    ),
    (
        lambda c: c.judged or not any(name.startswith("personal/") for name in c.config.objective.split("+")),
        "objective={c.config.objective}: algorithm={c.algorithm.name} has no personal models; choose val/acc, say, or judge clients with "
        "evaluation.personal=dealt",
    ),
    (
        lambda c: (
            not c.algorithm.predicts
            or len(c.algorithm.choices) == 1
            or c.config.dataset.validation > 0
            or c.config.evaluation.personal == "shards"
        ),
        "dataset.validation={c.config.dataset.validation}: algorithm={c.algorithm.name} chooses how clients predict by validation samples; "
        "leave it out, or give one number of each",
    ),
    (
        lambda c: not c.algorithm.sgd_inside or c.config.optimizer.plain,
        "algorithm={c.algorithm.name}: corrects steps of plain SGD, and optimizer={c.config.optimizer.option} takes others; choose "
        "optimizer=sgd without momentum and clip",
    ),
    (
        lambda c: not c.algorithm.linear_inside or c.config.optimizer.linear,
        "algorithm={c.algorithm.name}: normalises steps of SGD, with or without momentum, and optimizer={c.config.optimizer.option} takes "
        "others; choose optimizer=sgd or sgdm without clip",
    ),
    (
        lambda c: not c.algorithm.own_server or c.config.server.averages,
        "algorithm={c.algorithm.name} has an outer step of its own, in place of an outer optimizer's; leave server and its keys out",
    ),
    (
        lambda c: c.config.uplink.bypassed or c.algorithm.federated or c.m > 1,
        "uplink={c.config.uplink.name}: a lone worker of algorithm={c.algorithm.name} sends nothing; leave uplink out",
    ),
    (
        lambda c: c.algorithm.global_model or not c.participation.asks,
        "participation={c.participation.name}: asks for losses of the server's model, and algorithm={c.algorithm.name} has none; "
        "choose another scheme",
    ),
    (
        lambda c: c.algorithm.communicates or c.config.server.averages,
        "algorithm={c.algorithm.name}: clients train alone, without a server; leave server and its keys out",
    ),
    (
        lambda c: c.algorithm.communicates or c.config.uplink.bypassed,
        "uplink={c.config.uplink.name}: clients of algorithm={c.algorithm.name} send nothing that it could encode; leave uplink out",
    ),
    (
        lambda c: c.config.swa.start is None or c.algorithm.global_model,
        "swa.start={c.config.swa.start}: averages the server's models, and algorithm={c.algorithm.name} has none; leave swa out",
    ),
    (
        lambda c: c.config.swa.start is None or c.config.swa.lr2 is None or c.config.scheduler.name == "constant",
        "swa.lr2={c.config.swa.lr2}: rates fall to it within each cycle, and scheduler={c.config.scheduler.name} changes them by "
        "itself; choose scheduler=constant, or leave swa.lr2 out",
    ),
    (
        lambda c: c.config.uplink.bypassed or c.algorithm.takes_uplink,
        "uplink={c.config.uplink.name}: encodes what is sent to be averaged at the end of a round, and algorithm={c.algorithm.option} "
        "exchanges something else; leave uplink out",
    ),
    (
        lambda c: not c.config.uplink.private or c.algorithm.sends_mean_alone,
        "uplink={c.config.uplink.name}: hides a client in the mean of a round, and the server of algorithm={c.algorithm.option} learns "
        "more than that mean; choose algorithm=fedavg, say, or leave uplink out",
    ),
    (
        lambda c: not c.config.uplink.private or c.participation.even,
        "participation={c.participation.name}: some clients are more likely to take part than others, or it asks them, and "
        "uplink={c.config.uplink.name} needs all to be equally likely; choose participation=uniform",
    ),
    (
        lambda c: not c.config.uplink.private or not c.participation.dropout,
        "participation.dropout={c.participation.dropout}: uplink={c.config.uplink.name} divides by a fixed number of clients, all of which "
        "report; leave it out",
    ),
    (
        lambda c: not c.config.uplink.private or not c.local_steps.measures,
        "local_steps={c.local_steps.name}: chooses J by what clients measure, without noise; with uplink={c.config.uplink.name} choose a "
        "rule that measures nothing, as local_steps=linear",
    ),
    (
        lambda c: not c.algorithm.virtual_clients or c.participation.draws_by_size,
        "participation={c.participation.name}: algorithm={c.algorithm.name} draws clients by their size; leave participation out",
    ),
    (
        lambda c: not c.algorithm.virtual_clients or c.equal_steps,
        "{c.unequal}: virtual clients of algorithm={c.algorithm.name} all take the same number of steps; {c.without}",
    ),
    (
        lambda c: not c.local_statistics or c.algorithm.federated,
        "model.statistics=local: statistics stay with clients, and algorithm={c.algorithm.option} has workers; choose averaged",
    ),
    (
        lambda c: not c.local_statistics or not c.participation.asks,
        "participation={c.participation.name}: asks for losses of the server's model, which has no statistics with model.statistics=local; "
        "choose another scheme",
    ),
    (
        lambda c: not c.local_statistics or c.config.swa.start is None,
        "swa.start={c.config.swa.start}: averages the server's models, which have no statistics with model.statistics=local; leave swa out",
    ),
    (
        lambda c: c.config.model.statistics != "frozen" or c.algorithm.synchronous or c.algorithm.federated,
        "model.statistics=frozen: workers of algorithm={c.algorithm.option} have statistics of their own, which differ; choose averaged",
    ),
    (
        lambda c: not c.algorithm.reads_back or not c.config.engine.startswith("graph"),
        "engine={c.config.engine}: teachers of algorithm={c.algorithm.option} are other networks from round to round, so that steps cannot "
        "be recorded; choose stacked, im2col or loop",
    ),
    (
        lambda c: not c.algorithm.mixes or not c.local_steps.measures,
        "local_steps={c.local_steps.name}: compares what clients of one architecture measure, and algorithm={c.algorithm.option} may have "
        "several; choose a rule that measures nothing, as local_steps=linear",
    ),
    (
        lambda c: c.m == c.K or c.participation.name != "all",
        "C={c.C}: participation=all takes every client; choose participation=uniform or leave C out",
    ),
    (
        lambda c: not c.algorithm.event_driven or c.equal_steps,
        "{c.unequal}: in algorithm={c.algorithm.name} workers differ by speeds=; {c.without}",
    ),
    (
        lambda c: c.algorithm.slowest == math.inf or c.slowness <= c.algorithm.slowest,
        "{c.difference_of_speeds}: the slowest of K={c.K} workers is {c.slowness:.3g} times as slow as the fastest; with "
        "algorithm={c.algorithm.name} at most {c.algorithm.slowest:,} times is allowed: choose speeds that differ less",
    ),
)


def check_compatibility(choice: Choice) -> None:
    """Refuse options that do not go together.

    Raises:
        UserError: the line of the first requirement that does not hold.
    """
    for holds, otherwise in REQUIREMENTS:
        if not holds(choice):
            raise UserError(otherwise.format(c=choice))
