"""`python -m fl_hydra.make train ...`, and `report`, `best`, `runs` or `smoke` in its place: what the Makefile runs.

Keys can be given to make as variables, `make localsgd K=2 seed=0`: they are added to what the Makefile gives. SIZE counts from the
environment too, `SIZE=short make localsgd`, which would else train for days without a word. A report is drawn from the `outputs=` that was
trained into.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

OWN = frozenset(
    {"ARGS", "PYTHON", "VENV", "RUN", "TRAIN", "REPORT", "BEST", "ASK", "SMOKE", "DEMO", "TRACK_A", "TRACK_B", "SEARCHES", "SHELL"}
)
"""Variables of the Makefile itself, and of make."""


def typed_variables(flags: str) -> list[str]:
    """`KEY=VALUE` for each variable on make's command line, from what it tells its recipes in MAKEFLAGS; a later one counts.

    After ` -- ` make lists them with a backslash before each space and backslash, and each $ doubled.
    """
    _, _, listed = f" {flags}".partition(" -- ")
    typed = {}
    for word in re.findall(r"(?:\\.|[^\\\s])+", listed, re.S):
        key, equals, value = re.sub(r"\\(.)", r"\1", word, flags=re.S).replace("$$", "$").partition("=")
        key = key.rstrip("+:?")
        if equals and key == "SIZE":
            key = "size"
        if equals and key not in OWN and not key.startswith("MAKE"):
            typed[key] = value
    return [f"{key}={value}" for key, value in typed.items()]


def asked_for(environment: Mapping[str, str]) -> list[str]:
    """`KEY=VALUE` for what was asked of make: on its command line, or, of the size, in the environment."""
    typed = typed_variables(environment.get("MAKEFLAGS", ""))
    if (size := environment.get("SIZE")) and not any(word.startswith("size=") for word in typed):
        typed.append(f"size={size}")
    return typed


def main() -> None:
    """Run train.py or another program with what was typed to make."""
    program, *given = sys.argv[1:]
    typed = asked_for(os.environ)
    if program in ("report", "best") and "dry_run=true" in (*given, *typed):
        return  # nothing was trained
    if program == "train":
        from fl_hydra.app import main as train

        sys.argv = ["train.py", *given, *typed]
        train()
    elif program == "best":
        from fl_hydra.tuning.__main__ import main as choose

        sys.argv = ["tuning.py", "best", *report_arguments([*given, *typed])]
        choose()
    elif program == "runs":
        from fl_hydra.runs.__main__ import main as ask

        sys.argv = ["runs.py", *list_arguments(given, typed)]
        ask()
    elif program == "smoke":
        from fl_hydra.sweeping.smoke import main as smoke

        sys.argv = ["smoke.py", *given, *(word for word in typed if not word.startswith("size="))]
        smoke()
    else:
        from fl_hydra.report.__main__ import main as report

        sys.argv = ["report.py", *report_arguments([*given, *typed])]
        report()


def list_arguments(given: list[str], typed: list[str]) -> list[str]:
    """What is asked about runs: FILTER and SORT are variables of make, and so are conditions with an equals sign."""
    words = list(given)
    for word in typed:
        key, _, value = word.partition("=")
        match key:
            case "FILTER":
                words += value.split()
            case "SORT":
                words.append(f"--sort={value}")
            case "outputs":
                words.append(f"--outputs={value}")
            case _:
                words.append(word)
    return words


def report_arguments(words: list[str]) -> list[str]:
    """What of a training command says which report is drawn, and from where."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from fl_hydra.arguments import as_text

    ends = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "TRACK":
            ends.append(f"--track={value.lower()}")
        elif key == "RUNS":
            ends += ["--runs", *value.split()]
    words = [word for word in words if word.partition("=")[0] not in ("TRACK", "RUNS")]
    kept = [word for word in words if word.startswith("--") or not ("=" in word or word.startswith(("-", "~")))]
    parser = OverridesParser.create()
    keys = {
        key: parser.parse_override(as_text(word)).value() for word in words if (key := word.partition("=")[0]) in ("outputs", "section")
    }
    size = next((word.partition("=")[2] for word in reversed(words) if word.startswith("size=")), "full")
    if size != "full":  # noted for sections of their own
        kept = [word if word.startswith("--") else f"{word}-{size}" for word in kept]
    if keys.get("section"):
        kept = [*(word for word in kept if word.startswith("--")), str(keys["section"])]
    return kept + ([f"--outputs={keys['outputs']}"] if keys.get("outputs") else []) + ends


if __name__ == "__main__":
    main()
