# make demo: set up and run the main job.  make test: set up and run every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test lint browser wheel-test docs site clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: $(PYTHON) is missing or older than 3.11; name another: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "error: $(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml
	$(PIP) install -e .
	$(BIN)/fleet warmup
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) install -e '.[test,docs]'
	touch $@

demo: $(VENV)/.run
	$(BIN)/fleet run churn --out runs/demo --overwrite
	@echo "Ask it more:  $(BIN)/fleet query runs/demo 'SELECT event, COUNT(*) AS n FROM events GROUP BY event'"

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests of reports need a browser; as root, on Debian and Ubuntu, it is installed.
browser:
	@command -v chromium >/dev/null || \
	    { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	    echo "no chromium here: tests that open a report are skipped"

# Two workers; tests/conftest.py says what stays together and what begins.
test: lint browser
	$(BIN)/python -m pytest -n 2

# The wheel alone, in an empty environment, outside of the checkout.
wheel-test: $(VENV)/.test
	rm -rf build/wheel
	$(BIN)/python -m build --wheel --outdir build/wheel . >/dev/null
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip --disable-pip-version-check --quiet install build/wheel/*.whl
	cd build/wheel && venv/bin/fleet run smoke --inline --out run
	cd build/wheel && venv/bin/fleet query run 'SELECT event, COUNT(*) AS n FROM events GROUP BY event'
	cd build/wheel && venv/bin/fleet report run -o report.html
	rm -rf build/wheel

docs: $(VENV)/.run
	$(BIN)/fleet columns --markdown > docs/columns.md
	$(BIN)/python docs/reference.py
	$(BIN)/python docs/img/draw.py

# The documentation as a site, in site/; it loads nothing from elsewhere.
site: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) runs dist build site
