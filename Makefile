# SPDX-License-Identifier: Apache-2.0
# Everything happens in .venv, which the first target that needs it makes: with uv where
# that is installed, else with venv and pip. Nothing is installed outside this directory.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

# How many processes run the tests. Each test file runs in one of them, in the usual order. JOBS=0: no further process,
# as a debugger needs it.
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Modules, and the tests themselves, are compiled once and not by each of the processes that the tests start.
unexport PYTHONDONTWRITEBYTECODE

UV := $(shell command -v uv 2>/dev/null)
ifneq ($(UV),)
  # uv finds, or fetches, a Python that is new enough unless one was named
  create = uv venv --quiet --allow-existing --python $(if $(filter file,$(origin PYTHON)),'>=3.11',$(PYTHON)) $(1)
  install = uv pip install --python $(1)/bin/python
else
  create = $(PYTHON) -m venv --upgrade-deps $(1)
  install = $(1)/bin/python -m pip install --disable-pip-version-check
endif
INSTALL := $(call install,$(VENV))

# llama.cpp comes as source. It builds on all cores, and without its command-line
# programs' shared code, which its Python package does not use: a third less to compile.
CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
export CMAKE_BUILD_PARALLEL_LEVEL
export CMAKE_ARGS := $(CMAKE_ARGS) "-DCMAKE_PROJECT_llama_cpp_INCLUDE=$(CURDIR)/.ci/llama-cpp.cmake"

BUILD_DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

.DELETE_ON_ERROR:
.PHONY: help demo test quick servers coverage oldest check layers fuzz bench gpu vulkan docs table dist clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{ printf "  make %-9s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---------------------------------------------------------------- use

# A home of its own keeps the demo off your llm database and your models.
DEMO_MODEL := llama_cpp:SmolLM2-135M-Instruct.Q4_1
demo: $(VENV)/.demo ## ask a small local model two questions, through llm
	@export HOME="$(CURDIR)/$(VENV)/home" LLM_USER_PATH="$(CURDIR)/$(VENV)/home/llm"; \
	unset XDG_CONFIG_HOME XDG_CACHE_HOME XDG_DATA_HOME; mkdir -p "$$LLM_USER_PATH"; \
	ask() { \
	  printf '\n$$ llm -m $(DEMO_MODEL) -o max_tokens 250 "%s"\n' "$$1"; \
	  $(BIN)/llm -m $(DEMO_MODEL) -o max_tokens 250 "$$1"; \
	}; \
	ask "Why is the sky blue?" && \
	ask "Explain in two sentences what a compiler does."

test: $(VENV)/.dev ## run the whole test suite; ARGS='-k name' is handed to pytest
	$(PYTEST) $(ARGS)

quick: $(VENV)/.dev ## test the contract, the parts that engines share, and one backend, in about a minute
	$(BIN)/python -m pytest -q -m "not slow" \
	  tests/contract tests/decisions tests/concurrency tests/engine tests/chat tests/testing/test_contract.py $(ARGS)

coverage: $(VENV)/.dev ## run the whole test suite, and report what it does not reach; build/coverage/html has it line by line
	rm -rf build/coverage
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage html --quiet --fail-under 0
	$(BIN)/coverage report

# The newest is what .venv has. langchain, and its providers' packages, want a newer core than the adapter does.
OLDEST := $(VENV)/oldest
OLDEST_LLM := llm@0.32
OLDEST_LANGCHAIN := langchain-core@1.4.0
OF_LANGCHAIN := $(filter-out %_across.py %_agent.py %_examples.py %_plugin.py,$(wildcard tests/adapters/langchain/test_*.py))
oldest: $(VENV)/.dev $(OLDEST)/$(OLDEST_LLM) $(OLDEST)/$(OLDEST_LANGCHAIN) ## run the adapters' tests with the oldest llm and langchain-core that they work with
	PYTHONPATH="$(CURDIR)/$(OLDEST)/$(OLDEST_LLM)" $(PYTEST) $(wildcard tests/adapters/llm/test_*.py) $(ARGS)
	PYTHONPATH="$(CURDIR)/$(OLDEST)/$(OLDEST_LANGCHAIN)" $(PYTEST) $(OF_LANGCHAIN) $(ARGS)

# a directory for each, which goes before .venv's own packages
$(OLDEST)/%: | $(VENV)/.dev
	$(INSTALL) --target $@ --no-deps '$(subst @,==,$*)'

check: $(VENV)/.dev ## format, lint, types, dead code, exported names, workflows, and whether the documentation builds
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/python -m pytest -q tests/project/test_structure.py tests/contract/test_exports.py
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows $(wildcard .github/workflows/*.yml)
	$(BUILD_DOCS)

servers: $(VENV)/.dev ## run the contract suite on vLLM, SGLang and LiteLLM, each in an environment of its own; ARGS='vllm'
	$(BIN)/python -m tests.servers $(ARGS)

layers: $(VENV)/.dev ## check that imports point down and that none runs in a circle
	$(BIN)/lint-imports --no-logo --no-cache

fuzz: $(VENV)/.dev ## try every parser on inputs that nobody meant, and load model files with a wrong value
	$(BIN)/python -m tests.fuzz $$($(BIN)/python -m tests.fuzz | cut -d' ' -f1) $(ARGS)
	$(BIN)/python -m tests.fuzz.loads

bench: $(VENV)/.dev ## run every benchmark, into one table; ARGS='--quick --idle-wait 60'
	$(BIN)/python -m benchmarks $(ARGS)

gpu: $(VENV)/.dev ## on a machine with a GPU, in ten minutes: the engine's tests on it, and its ratios, as a page in build/gpu
	$(BIN)/python -m benchmarks.gpu

docs: $(VENV)/.dev ## build the documentation into build/site; run its code, follow its links
	$(BUILD_DOCS)
	$(BIN)/python -m pytest tests/project/test_docs.py $(ARGS)

CONTRACTS = $(wildcard tests/backends/*/test_contract.py tests/adapters/*/test_contract.py) tests/testing/test_example.py
table: $(VENV)/.dev ## run the contract suites; the table of what each backend can do (ARGS='--write README.md')
	@rm -rf build/contract && mkdir -p build/contract
	$(BIN)/python -m pytest $(CONTRACTS) -q --contract-report build/contract/suites.json
	$(BIN)/python docs/capabilities.py build/contract/*.json $(ARGS)

dist: $(VENV)/.made ## build the sdist, and the wheel from it, into dist/; try the wheel in an environment of its own
	rm -rf dist build/dist
	$(INSTALL) --group dist
	$(BIN)/python -m build --outdir dist
	$(call create,build/dist)
	$(call install,build/dist) "$$(echo dist/*.whl)[cli]"
	build/dist/bin/python -I -c 'import inference_bridge; print(inference_bridge.__version__, *inference_bridge.names())'
	build/dist/bin/inference-bridge --help

clean: ## remove .venv and all that was built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---------------------------------------------------------------- Vulkan

# A GPU's code paths without a GPU: Mesa's llvmpipe is a Vulkan device in software. On Debian 13 the packages are
# mesa-vulkan-drivers, libvulkan-dev, glslc and spirv-headers; llama.cpp needs Vulkan's headers of 1.3.272 or later.
VULKAN := $(VENV)/vulkan
VULKAN_HEADERS ?= /usr/include
vulkan: $(VULKAN)/.built ## build llama.cpp for Vulkan, and run the contract suite on its first device, in software too
	GGML_VK_VISIBLE_DEVICES=0 PYTHONPATH="$(CURDIR)/$(VULKAN)" $(BIN)/python -m pytest tests/backends/llama_cpp/test_gpu.py $(ARGS)

$(VULKAN)/.built: | $(VENV)/.dev
	@command -v glslc >/dev/null || { echo "glslc is not installed: Debian's packages are mesa-vulkan-drivers libvulkan-dev glslc spirv-headers"; exit 1; }
	@grep -qs VkLayerSettingsCreateInfoEXT $(VULKAN_HEADERS)/vulkan/vulkan_core.h || { echo "Vulkan's headers in $(VULKAN_HEADERS) are missing or older than 1.3.272: name newer ones, VULKAN_HEADERS=DIRECTORY"; exit 1; }
	CMAKE_ARGS="$$CMAKE_ARGS -DGGML_VULKAN=on -DVulkan_INCLUDE_DIR=$(VULKAN_HEADERS)" \
	  $(INSTALL) --target $(VULKAN) --no-deps --no-cache-dir --no-binary llama-cpp-python llama-cpp-python
	touch $@

# ---------------------------------------------------------------- the environment

# A stamp is newer than what it was installed from, so pyproject.toml alone sets off a new install.
$(VENV)/.demo: pyproject.toml | $(VENV)/.made
	@$(call announce)
	$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.made
	@$(call announce)
	$(INSTALL) -e '.[all,demo]' --group test --group check --group docs
	@touch $@

$(VENV)/.made:
ifeq ($(UV),)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "This needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)."; \
	  echo "Name another one: make PYTHON=python3.12"; exit 1; } >&2
endif
	$(call create,$(VENV))
	@touch $@

define announce
ls -d $(VENV)/lib/python3*/site-packages/llama_cpp >/dev/null 2>&1 || { \
  echo; echo "Installing into $(VENV). llama.cpp is built from source: about three minutes on two cores, this once."; \
  command -v "$${CXX:-c++}" >/dev/null || echo "No C++ compiler was found: install one (Debian: build-essential, macOS: xcode-select --install)." >&2; \
  echo; }
endef
