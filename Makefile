# make help lists the goals. Each does all of its own set-up (a virtual environment, torch, the tools, the kernels) and is
# quick the second time.
#
#   ARGS     for the program that is run:         make test ARGS=tests/apps/test_cli.py, make bench ARGS=--help
#   TORCH    another torch than the one found:    make build TORCH='torch==2.14.1'
#   PYTHON   the Python for a new environment:    make test PYTHON=python3.12
#   VENV     the environment's folder:            make test VENV=$HOME/envs/fastrnn
#   JOBS     test processes at a time:            make test JOBS=8
#   MINUTES  how long random calls are tried:     make fuzz MINUTES=10
#
# pip reads its own settings: PIP_INDEX_URL or PIP_FIND_LINKS chooses where torch comes from.

ARGS ?=
TORCH ?=
PYTHON ?=
VENV ?= .venv
JOBS ?= 2
MINUTES ?= 10

PY := $(VENV)/bin/python
CPP_FILES = find csrc tests/native tests/cuda tests/cuda_ops benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu'

.DEFAULT_GOAL := build
.PHONY: help bench bench-peers docs test test-quick fuzz lint cuda-check wheels check-wheels style format build deps venv clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@sed -n '/^#   ARGS/,/^#   MINUTES/s/^# //p' $(MAKEFILE_LIST)

bench: venv  ## time fastrnn against torch.nn
	@$(PY) tools/dev_env.py bench --torch "$(TORCH)"
	@$(PY) -m fastrnn bench $(ARGS)

# Other libraries beside torch.nn. They are no part of the development environment: only this goal installs them.
bench-peers: venv  ## beside onnxruntime, OpenVINO and JAX, which it installs
	@$(PY) tools/dev_env.py bench --torch "$(TORCH)"
	@$(PY) -m pip install --quiet onnxruntime onnx openvino jax
	@$(PY) -m fastrnn bench --peers $(ARGS)

# Warnings are errors. Nothing is downloaded but the tools, once.
docs: venv  ## the guide and the reference, into build/docs
	@$(PY) tools/dev_env.py docs --torch "$(TORCH)"
	@$(PY) -m sphinx -W --keep-going --quiet --fresh-env --write-all -b html -d build/docs-trees docs build/docs
	@echo build/docs/index.html

test: deps build  ## all tests
	@$(PY) -m pytest -n $(JOBS) $(ARGS)

# Some tests of every part of the package, for before a commit. One thread in each process: there are as many as cores.
test-quick: deps build  ## two minutes of them, for before a commit
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PY) -m pytest -n $(JOBS) -m quick $(ARGS)

# Random calls on all cores, compared with torch.nn and under guard pages; see CONTRIBUTING.md.
fuzz: deps build  ## random calls against torch.nn and under guard pages
	@$(PY) -m tests.fuzz --minutes $(MINUTES) $(ARGS)

lint: style  ## style, and mypy
	@$(PY) -m mypy

# Compiles the CUDA kernels against torch's CUDA build, in an environment of its own. Needs nvcc, and no GPU.
cuda-check:  ## compile the CUDA kernels; needs nvcc, no GPU
	@tools/check_cuda.sh "$(VENV)-cuda" "$(PYTHON)"

# For several Pythons and torches; neither that torch nor those Pythons' packages are installed. ARGS='--pythons 3.11'.
wheels: venv  ## a wheel for each Python, for torch 2.11 to 2.15, into dist
	@$(PY) tools/dev_env.py wheels
	@$(PY) tools/build_wheels.py $(ARGS)

# Each torch is several GB, unless pip is pointed to its CPU-only build. ARGS='--cells 3.11:2.13.0'.
check-wheels: venv  ## install the wheels of dist in clean environments and try them
	@$(PY) tools/try_wheels.py $(ARGS)

# What is quick enough to run before every commit.
style: deps  ## ruff and clang-format, changing nothing
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(CPP_FILES) | xargs $(VENV)/bin/clang-format --dry-run -Werror

format: deps  ## ruff and clang-format, changing the files
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .
	@$(CPP_FILES) | xargs $(VENV)/bin/clang-format -i

build: venv  ## an environment with torch and the kernels (the default goal)
	@$(PY) tools/dev_env.py build --torch "$(TORCH)"

deps: venv
	@$(PY) tools/dev_env.py deps --torch "$(TORCH)"

venv:
	@tools/create_venv.sh "$(VENV)" "$(PYTHON)"

clean:  ## remove what was built
	rm -rf build dist *.egg-info fastrnn/_lib fastrnn/_C*.so fastrnn/_cuda*.so .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find fastrnn tests tools -name __pycache__ -type d -prune -exec rm -rf {} +
