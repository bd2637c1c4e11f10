"""`python train.py` trains one run, `python train.py -m ...` a grid; `python train.py --help` says what can be chosen."""

from fl_hydra.app import main

if __name__ == "__main__":
    main()
