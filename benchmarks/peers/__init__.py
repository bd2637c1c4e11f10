"""The benchmark's FedAvg round in public simulators, installed in a venv of their own: requirements.txt, `make peers`."""
