"""A sweep of three short runs on CIFAR-100 that says when each began its first round; see the section `start` of the benchmark."""

from __future__ import annotations

import contextlib
import json
import sys
import time

import fl_hydra.app


def main() -> None:
    """Run the sweep with the given overrides; the last line of the output is JSON with the moments."""
    began: list[float] = []
    ended: list[float] = []

    def watch() -> None:
        # Installed by the first import of the trainer, so that the time of that import is part of what is measured.
        from fl_hydra.runs import execution

        original = execution._train

        def timed(*arguments: object) -> None:
            from fl_hydra.training.trainer import Trainer

            first_round = Trainer.run_round

            def noted(self: Trainer) -> None:
                if len(began) == len(ended):
                    began.append(time.time())
                first_round(self)

            Trainer.run_round = noted  # type: ignore[method-assign]
            try:
                original(*arguments)  # type: ignore[arg-type]
            finally:
                Trainer.run_round = first_round  # type: ignore[method-assign]
                ended.append(time.time())

        execution._train = timed  # type: ignore[assignment]

    watch()
    common = ["dataset=cifar100", "algorithm=fedavg", "rounds=1", "evaluation.points=1", "seed=0,1,2"]
    sys.argv = ["train.py", "-m", *common, *sys.argv[1:]]
    with contextlib.suppress(SystemExit):
        fl_hydra.app.main()
    between = [start - end for start, end in zip(began[1:], ended, strict=False)]
    print(json.dumps({"rounds": began, "between": between}))


if __name__ == "__main__":
    main()
