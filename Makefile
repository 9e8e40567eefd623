# Two commands do everything on a fresh machine: `make demo` serves the page, `make test` runs every test.
# Python comes from $(PYTHON), packages go into $(VENV); delete that folder to start afresh.

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# An environment whose interpreter is gone, or is another version than its packages are for, is made anew.
$(shell { test -L $(BIN)/python && ! test -e $(BIN)/python || test -e $(VENV)/.runtime && ! $(BIN)/python -c 'import pip'; } \
	2>/dev/null && rm -f $(BIN)/python* $(VENV)/.runtime $(VENV)/.dev)

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export GRADIO_ANALYTICS_ENABLED = False
export HF_HUB_DISABLE_TELEMETRY = 1
# uv installs the same packages in less than half of the time. It does not read pip's settings: where there are
# others than these three, or where it fails, pip installs, by way of this folder: /tmp may be small.
INSTALL = install() { \
	if command -v uv >/dev/null && ! $(BIN)/python -m pip config list | grep -Evq '^:env:.(index-url|find-links|disable-pip-version-check)='; then \
		uv pip install --quiet --python $(BIN)/python $${PIP_INDEX_URL:+--index-url "$$PIP_INDEX_URL"} \
			$${PIP_FIND_LINKS:+--find-links "$$PIP_FIND_LINKS"} "$$@" && return; fi; \
	TMPDIR="$$PWD/$(VENV)" $(BIN)/python -m pip install --quiet "$$@"; }; install
# Tests start the program many times, and Python need not compile it each time.
unexport PYTHONDONTWRITEBYTECODE
# A busy neighbour costs a program whose threads spin while they wait far more than one whose threads sleep.
TEST = HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2

.DEFAULT_GOAL := help
.PHONY: help demo test check bench soak huge screenshots pictures install dev chromium clean

help: ## show this list
	@awk -F':[^#]*## ' '/^[a-z]+:.*## /{printf "%-14s%s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: install ## install what is needed and serve the page
	$(BIN)/python app.py $(ARGS)

test: dev chromium ## run every test (ARGS="-k name" narrows it)
	$(TEST) --dist loadfile --no-loadscope-reorder $(ARGS)

check: dev ## lint, format check, types and the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TEST) --dist worksteal -q -m "not slow and not browser" $(ARGS)

bench: dev ## measure speed and memory side by side with the alternatives
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.bench $(ARGS)

soak: dev ## honest visitors and attackers for ten minutes: does anybody notice? (Linux; ARGS=60: an hour)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.soak $(ARGS)

huge: dev ## load and serve a base of 7B shape in limited memory (Linux, 14 GB of disk, 9 GB of memory)
	HF_HUB_OFFLINE=1 SEVEN_BILLION_LAYERS=32 $(BIN)/python -m pytest -s -o faulthandler_timeout=0 --timeout=0 tests/base/test_seven_billion.py $(ARGS)

screenshots: dev chromium ## walk through the page as a newcomer, timed, and take the README's pictures
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.screenshots $(ARGS)

pictures: dev ## fetch the pictures that see is trained and tested on (2.5 GB; ARGS=drawings: to train)
	$(BIN)/python -m train.recipes.see.pictures $(ARGS)

install: $(VENV)/.runtime ## only install what serving and training need

dev: $(VENV)/.dev ## only install what the tests need

clean: ## delete the environment and caches in this folder
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache *.egg-info

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or name one: make PYTHON=/path/to/python"; exit 1; }
	@"$(PYTHON)" -m venv "$(VENV)" || { rm -f "$@"; \
		echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv, or python3.11-venv for python3.11. Without root: uv venv $(VENV)"; exit 1; }

$(VENV)/.runtime: requirements.txt | $(BIN)/python
	@$(INSTALL) -r requirements.txt
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.runtime
	@$(INSTALL) --editable '.[dev]'
	@touch $@

# The browser tests drive Debian's Chromium; without it they skip and say so.
chromium:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ]; then as_root=; elif sudo -n true 2>/dev/null; then as_root=sudo; else \
		echo "No chromium and no right to install it: the browser tests will be skipped."; exit 0; fi; \
	command -v apt-get >/dev/null && ! grep -qx ID=ubuntu /etc/os-release || { \
		echo "Install chromium (no snap) to run the browser tests."; exit 0; }; \
	echo "Installing chromium for the browser tests"; \
	$$as_root apt-get -qq update && \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install chromium >/dev/null \
	|| echo "Chromium cannot be installed: the browser tests will be skipped."
