# make demo   runs everything on this machine: server, web, worker, orders
# make test   installs what it needs and runs all checks; ARGS go to pytest: make test ARGS="-k embedded"
# make chaos  runs workers under a storm of faults: make chaos ARGS="--minutes 10 --seed 7"
PYTHON := .venv/bin/python

.PHONY: help demo test chaos lint clean ruff types contracts collected

help:
	@sed -n 's/^# //p' Makefile

demo: .venv/.runtime
	@exec $(PYTHON) manage.py demo $(ARGS)

# All processes of the tests share compiled modules, also where the shell says that none are to be written.
test: export PYTHONDONTWRITEBYTECODE =
test: .venv/.development
	scripts/install-test-services
	$(MAKE) --no-print-directory --jobs=2 types ruff contracts collected
	$(PYTHON) -m pytest $(ARGS)

chaos: .venv/.development
	@exec $(PYTHON) -m tests.chaos $(ARGS)

lint: ruff types contracts

ruff: .venv/.development
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: .venv/.development
	$(PYTHON) -m mypy

contracts: .venv/.development
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as main; main()"

# Every test can be imported; and it is compiled once, not by each process of the tests at the same time.
collected: .venv/.development
	@output=$$($(PYTHON) -m pytest -n 0 --collect-only -qqq 2>&1) || { echo "$$output"; exit 1; }

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# The stamps are newer than their requirements only after an installation that went through.
.venv/.runtime: requirements.txt scripts/make-venv
	scripts/make-venv requirements.txt
	@touch $@

.venv/.development: requirements-dev.txt requirements.txt scripts/make-venv
	scripts/make-venv requirements-dev.txt
	@touch .venv/.runtime $@
