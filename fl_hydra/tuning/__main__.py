"""`python -m fl_hydra.tuning best NAME`: write the best values of a section's searches, or of a grid's runs, for `tuned=NAME`.

`python -m fl_hydra.tuning draw NAME` draws each of its studies.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fl_hydra.errors import UserError, require
from fl_hydra.exits import framed
from fl_hydra.paths import OUTPUTS

if TYPE_CHECKING:
    from fl_hydra.tuning.chosen import Chosen


def main() -> None:
    """Choose values and print them, or draw studies."""
    framed(_main)


def _main() -> None:
    from fl_hydra.arguments import as_typed
    from fl_hydra.tuning.chosen import write_chosen
    from fl_hydra.tuning.space import as_override

    parser = argparse.ArgumentParser(prog="python -m fl_hydra.tuning", description=main.__doc__)
    parser.error = _refuse  # type: ignore[method-assign]  # it would print how to use it in several lines
    parser.add_argument("what", choices=["best", "draw"], help="best: write the best values; draw: pictures of its studies")
    parser.add_argument("name", help="a section, or a study, that was searched; with --by, a section whose runs are a grid")
    parser.add_argument("--by", default="", metavar="KEYS", help="choose from the runs of a grid: of these keys, as optimizer.lr,K")
    parser.add_argument("--over", default="seed", metavar="KEYS", help="with --by: take means over these; seed if not given")
    parser.add_argument("--objective", help="with --by: what decides, as objective= of a search; val/acc if not given")
    parser.add_argument("--trial", type=int, help="of a study with two objectives: which of its front to take")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help="the folder of the runs; the project's own")
    arguments = parser.parse_intermixed_args()
    outputs = arguments.outputs.expanduser()
    require(outputs.is_dir(), f"outputs={outputs}: there is no such folder")
    if arguments.what == "draw":
        from fl_hydra.report.figures.trials import draw_study

        for study in _studies(arguments.name, outputs):
            path = draw_study(study, outputs / "report" / f"{study['study']}.png")
            print(f"wrote {path}")
        return
    require(
        arguments.trial is None or not arguments.by, "--trial names one of a study's front; with --by runs are chosen from: leave it out"
    )
    require(
        arguments.objective is None or bool(arguments.by), "--objective is for --by; a study has the objective that it was searched with"
    )
    if arguments.by:
        keys, over = (tuple(filter(None, words.split(","))) for words in (arguments.by, arguments.over))
        chosen = of_runs(arguments.name, outputs, keys, over, arguments.objective or "val/acc")
    else:
        chosen = of_studies(arguments.name, outputs, arguments.trial)
    for each in chosen:
        where, values = (" ".join(as_typed(as_override(key, value)) for key, value in some.items()) for some in (each.where, each.values))
        print(f"{where + ': ' if where else ''}{values}, {each.objective} {each.value:.5g}, the best of {each.trials}")
    print(f"wrote {write_chosen(arguments.name, outputs, chosen)}")


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; as in: python -m fl_hydra.tuning best SECTION")


def of_studies(name: str, outputs: Path, trial: int | None = None) -> list[Chosen]:
    """The best trial of each study of a section, or of one study; or, for a study with two objectives, the named trial of its front.

    Raises:
        UserError: there is none, or one has no best trial, or a front without a named trial.
    """
    from fl_hydra.tuning.chosen import Chosen

    found = []
    for study in _studies(name, outputs):
        trials = {each["number"]: each for each in study["trials"]}
        require(bool(study["best"]), f"{study['study']}: none of its {len(trials)} trials is complete; search again")
        one = len(study["objectives"]) == 1
        require(not one or trial is None, f"{study['study']}: it has one objective, and so one best trial; leave --trial out")
        require(
            one or trial in study["best"],
            f"{study['study']}: a front of {len(study['best'])} trials and none of them is the best; name one with --trial: "
            f"{', '.join(map(str, study['best']))}",
        )
        best = trials[study["best"][0] if one else trial]
        found.append(
            Chosen(
                study["where"],
                best["params"],
                study["objectives"][0],
                best["values"][0],
                study["study"],
                len(trials),
                study["question"]["seeds"],
                _today(),
            )
        )
    twice = [each.study for each in found if sum(other.where == each.where for other in found) > 1]
    require(not twice, f"{name}: {' and '.join(twice)} are for the same runs; delete the folder of the one that does not count")
    return found


def _studies(name: str, outputs: Path) -> list[dict[str, Any]]:
    """The `study.json` of each study of a section, or of one study.

    Raises:
        UserError: there is none, or it is damaged.
    """
    from fl_hydra.files import CorruptFile
    from fl_hydra.tuning.kept import KEPT, read_kept

    found = []
    for path in sorted((outputs / "studies").glob(f"*/{KEPT}")):
        try:
            study = read_kept(path.parent)
        except CorruptFile as error:
            raise UserError(f"{path.parent}: {error}; give the search's command again, which writes it again") from error
        if name in (study["study"], study["section"]):
            found.append(study)
    require(bool(found), f"{name}: no search of this name has ended in {outputs / 'studies'}; search with section={name} first")
    return found


def of_runs(section: str, outputs: Path, by: Sequence[str], over: Sequence[str], objective: str) -> list[Chosen]:
    """The best values of some keys among the runs of a section, for each setting of the other keys that differ.

    Raises:
        UserError: there are no such runs, or not all values have the same seeds.
    """
    from fl_hydra.arguments import keys
    from fl_hydra.runs.identity import by_key
    from fl_hydra.runs.reading import read_run
    from fl_hydra.runs.sections import section_runs
    from fl_hydra.tuning.chosen import Chosen
    from fl_hydra.tuning.objective import Objective

    looked_for = Objective.of(objective)
    for key in (*by, *over):
        require(key in keys(), f"{key}: no such key; they are as on the command line, as optimizer.lr,K")
    require(not set(by) & ({"seed"} | set(over)), f"--by {','.join(by)}: means are over {', '.join(over)}, and a seed is not chosen")
    runs = [run for run in map(read_run, section_runs(section, outputs)) if run.status in ("finished", "diverged")]
    require(bool(runs), f"section={section}: none of its runs has ended; train them first")
    flat = [by_key(run.config) for run in runs]
    for key in (*by, *over):
        require(all(key in each for each in flat), f"{key}: not every run of section={section} has it; keys are as in config.yaml")
    differing = {key for key in {key for each in flat for key in each} if any(each.get(key) != flat[0].get(key) for each in flat)}
    free = {key for key in differing if key in keys()} - {*by, *over}
    # What runs differ in beside keys follows from them (how many clients take part), or cannot be told apart by tuned=.
    full = {(json.dumps({key: each.get(key) for key in sorted(free)}), each["budget"], each["m"]) for each in flat}
    require(
        len({where for where, *_ in full}) == len(full),
        f"section={section}: its runs have different budgets, or different C, which tuned= cannot tell apart; choose from a section of one",
    )
    groups: dict[str, dict[str, list[int]]] = {}
    for position, each in enumerate(flat):
        where = json.dumps({key: each.get(key) for key in sorted(free)})
        values = json.dumps({key: each[key] for key in by})
        groups.setdefault(where, {}).setdefault(values, []).append(position)
    chosen = []
    for where, candidates in groups.items():
        means = {}
        for values, positions in candidates.items():
            means[values] = statistics.fmean(looked_for.value(runs[at].status, runs[at].rows) for at in positions)
        sets = {tuple(sorted(str([flat[at][key] for key in over]) for at in positions)) for positions in candidates.values()}
        require(len(sets) == 1, f"section={section}: {', '.join(over)} differ from value to value; train the missing runs first")
        best = (max if looked_for.maximised else min)(means, key=lambda values: means[values])
        seeds = sorted({int(flat[at]["seed"]) for at in candidates[best]})
        chosen.append(
            Chosen(
                _as_typed(json.loads(where)),
                json.loads(best),
                str(looked_for),
                means[best],
                f"section {section}",
                len(candidates),
                seeds,
                _today(),
            )
        )
    return chosen


def _as_typed(where: dict[str, Any]) -> dict[str, Any]:
    """Options by their group, as `optimizer`, without missing ones."""
    return {key.removesuffix(".name"): value for key, value in where.items() if value is not None}


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


if __name__ == "__main__":
    main()
