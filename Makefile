# make demo   runs everything on this machine: server, web, worker, orders
# make test   installs what it needs and runs all checks; ARGS go to pytest: make test ARGS="-k embedded"
# make chaos  runs workers under a storm of faults: make chaos ARGS="--minutes 10 --seed 7"
PYTHON := .venv/bin/python

.PHONY: help demo test chaos lint clean

help:
	@sed -n 's/^# //p' Makefile

demo: .venv/.runtime
	@exec $(PYTHON) manage.py demo $(ARGS)

test: .venv/.development
	scripts/install-test-services
	$(MAKE) --no-print-directory lint
	$(PYTHON) -m pytest $(ARGS)

chaos: .venv/.development
	@exec $(PYTHON) -m tests.chaos $(ARGS)

lint: .venv/.development
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "from importlinter.cli import lint_imports_command as main; main()"

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# The stamps are newer than their requirements only after an installation that went through.
.venv/.runtime: requirements.txt scripts/make-venv
	scripts/make-venv requirements.txt
	@touch $@

.venv/.development: requirements-dev.txt requirements.txt scripts/make-venv
	scripts/make-venv requirements-dev.txt
	@touch .venv/.runtime $@
