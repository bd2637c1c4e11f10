PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
TRAIN := $(RUN) -m fl_hydra.make train
REPORT := $(RUN) -m fl_hydra.make report
ASK := $(RUN) -m fl_hydra.make runs
SMOKE := $(RUN) -m fl_hydra.make smoke
BEST := $(RUN) -m fl_hydra.make best
DEMO := section=demo

.DEFAULT_GOAL := help
TRACK_A := centralized large_batch localsgd slowmo outer hierarchical decentralized asynchronous local_steps learning_rate
TRACK_B := schedules fedavg participation heterogeneity shakespeare algorithms architectures compression personalised
SEARCHES := tune-centralized tune-large_batch tune-localsgd tune-slowmo tune-fedavg tune-heterogeneity tune-shakespeare
.PHONY: help setup demo test lint format bench chaos chaos-searches chaos-uploads combinations peers gpu-check gpu-tables cifar100 smoke status runs report sync dashboard track-a track-b $(TRACK_A) $(TRACK_B) $(SEARCHES)

help: ## what the other targets do
	@grep -E '^[a-z0-9_-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

setup: $(VENV)/.installed ## create .venv and install what constraints.txt pins

demo: setup ## train centralized, LocalSGD and FedAvg on the digits; a figure and a table in outputs/report
	$(TRAIN) $(DEMO) epochs=60
	$(TRAIN) $(DEMO) algorithm=localsgd K=4 J=8 epochs=60
	$(TRAIN) -m $(DEMO) algorithm=fedavg K=20 C=0.2 J=4 rounds=300 sharding=iid,classes N_c=2
	$(REPORT) demo

test: setup ## run the tests
	$(RUN) -m pytest

lint: setup ## ruff format and lint, mypy --strict
	$(RUN) -m ruff format --check
	$(RUN) -m ruff check
	$(RUN) -m mypy

format: setup ## format the code and sort imports
	$(RUN) -m ruff format
	$(RUN) -m ruff check --fix

bench: setup ## speed and memory against a plain loop; run it alone on the machine
	$(RUN) -m benchmarks.bench

chaos: setup ## attack runs in a thousand ways: kills, damage, failing disks; ARGS=--write makes docs/chaos.md
	$(RUN) -m tests.chaos $(ARGS)

chaos-searches: setup ## kill searches at random moments, which must end as if undisturbed
	$(RUN) -m tests.chaos.searches $(ARGS)

chaos-uploads: setup ## kill runs while they upload checkpoints, which must end elsewhere as if undisturbed
	$(RUN) -m tests.chaos.uploads $(ARGS)

combinations: setup ## docs/combinations.md: which options cannot be chosen together, and why
	$(RUN) -m tests.combinations

peers: setup ## install Flower and pfl in .venv-peers, for the benchmark to compare with
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers/requirements.txt

gpu-check: setup ## on a GPU: its tests, the benchmark, the required figures, two full runs; outputs/gpu-check.md
	$(RUN) -m benchmarks.gpu_check

gpu-tables: setup ## on a GPU, with CIFAR-100 in data: the tables of docs, three seeds each; continues where it was stopped, ARGS="--seconds 600" limits it
	$(RUN) -m benchmarks.gpu_tables $(ARGS)

cifar100: setup ## the first baselines on all of CIFAR-100: about half an hour on two cores
	$(TRAIN) section=cifar100 dataset=cifar100 algorithm=fedavg precision=bf16 rounds=2000
	$(TRAIN) section=cifar100 dataset=cifar100 algorithm=centralized precision=bf16 epochs=30
	$(REPORT) cifar100

# The sections of the report, for a GPU. Keys narrow it: make localsgd dataset=digits epochs=40 seed=0
# SIZE=short (real data, one seed) or smoke (the digits, seconds) takes what each file in sweeps/sweep says of that size.
# ARGS="..." does the same for what is not a key: make localsgd ARGS="hydra/launcher=packed +optimizer.clip=1"

centralized: ## section: which optimizer, which schedule, how many epochs
large_batch: ## section: LARS and LAMB against SGD, as the batch grows
localsgd: ## section: LocalSGD over K and J
slowmo: ## section: the same with a slow outer momentum
outer: ## section: outer optimizers beside the plain mean
hierarchical: ## section: how often to average, and which workers
decentralized: ## section: workers that average with their neighbours
asynchronous: ## section: methods without waiting, on a simulated clock
local_steps: ## section: rules that choose J
learning_rate: ## section: whether the best rate depends on K and J
schedules: ## section: centralized baselines on CIFAR-100 and Shakespeare
fedavg: ## section: the first federated baseline
participation: ## section: uniform against Dirichlet(gamma)
heterogeneity: ## section: iid against N_c classes a client, over J
shakespeare: ## section: roles as clients against iid, over J
algorithms: ## section: methods against label skew, and what they cost
architectures: ## section: normalisation and architecture under label skew
compression: ## section: how much of what clients send can be left out
personalised: ## section: a model for each client, by methods beside each other

$(TRACK_A): setup
	$(TRAIN) -m +sweep/track_a=$@ $(ARGS)
	$(REPORT) $@ $(ARGS)

$(TRACK_B): setup
	$(TRAIN) -m +sweep/track_b=$@ $(ARGS)
	$(REPORT) $@ $(ARGS)

track-a: $(TRACK_A) ## all sections of Track A, distributed

track-b: $(TRACK_B) ## all sections of Track B, federated

# Searches for a section's learning rates (sweeps/search). The best values go to outputs/tuned, where tuned=SECTION finds them.

tune-centralized: ## search: rate and weight decay of SGDM and AdamW
tune-large_batch: ## search: rate and weight decay of each optimizer at batch 64
tune-localsgd: ## search: the rate for each K and J
tune-slowmo: ## search: rate and slow momentum for each K and J
tune-fedavg: ## search: the clients' rate and weight decay
tune-heterogeneity: ## search: the clients' rate for each division and J
tune-shakespeare: ## search: the clients' rate for roles and for iid, for each J

$(SEARCHES): setup
	$(TRAIN) -m +search=$(@:tune-%=%) hydra/launcher=packed $(ARGS)
	$(BEST) $(@:tune-%=%) $(ARGS)

report: setup ## all sections that have been trained: figures, tables, index.html, report.tex; TRACK=a|b one track, RUNS="A B" any runs
	$(if $(filter smoke,$(MAKECMDGOALS)),@true,$(REPORT) $(ARGS)) # smoke draws its own

sync: setup ## upload to W&B what it lacks of the runs with tracker=wandb; ARGS="SECTION --project NAME" names others
	$(RUN) -m fl_hydra.tracking sync $(ARGS)

dashboard: setup ## make the report's panels at W&B, for each section; ARGS="SECTION --project NAME"
	$(RUN) -m fl_hydra.tracking dashboard $(ARGS)

runs: setup ## the runs in outputs: FILTER="algorithm=localsgd optimizer.lr<0.1" SORT=-val/acc
	$(ASK) list

status: setup ## by section and search: done, running, failed, to do, time left
	$(ASK) status

smoke: setup ## every section at smoke size, on the digits: seconds each; into outputs/smoke
	$(SMOKE) $(ARGS)
