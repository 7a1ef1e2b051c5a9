# Two commands do everything: `make demo` and `make test`. Each makes its own .venv.
# PYTHON names the interpreter to make it with: the first found of these that is 3.11 or newer.
CANDIDATES := python3 python3.14 python3.13 python3.12 python3.11 python
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in $(CANDIDATES); do "$$p" -c '$(NEW_ENOUGH)' 2>/dev/null && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

CHECKS := check-lint check-format check-mypy check-pyright check-imports

.PHONY: demo test long cpython-tests check $(CHECKS) test-all peers ssh fuzz soak bench clean

demo: $(VENV)/.test
	$(BIN)/forkwire demo

test: $(VENV)/.test
	$(PYTEST)

# What takes minutes or gigabytes: the whole conformance suite in Node, messages of 2 GiB.
long: $(VENV)/.test
	$(PYTEST) -m long

# CPython's own tests of its executor, against ours; VERBOSE=-v names each. Needs a Python that ships
# test.test_concurrent_futures as a package (3.12 or newer).
cpython-tests: $(VENV)/.test
	$(BIN)/python tests/pool/cpython_suite.py $(VERBOSE)

check: $(CHECKS)

check-lint: $(VENV)/.check
	$(BIN)/ruff check .

check-format: $(VENV)/.check
	$(BIN)/ruff format --check .

check-mypy: $(VENV)/.check
	$(BIN)/mypy

check-pyright: $(VENV)/.check
	$(BIN)/pyright

check-imports: $(VENV)/.check
	$(BIN)/lint-imports

# Every Python from 3.11 up that is found, and PYTHON, each with an environment of its own.
test-all:
	PYTHON="$(PYTHON)" tests/all-pythons

# Needs Debian's ocaml-nox, liblwt-ocaml-dev and ocaml-findlib.
peers: $(VENV)/.test
	$(MAKE) -C tests/peers
	FORKWIRE_PEERS=required $(PYTEST) tests/peers

# Needs Debian's openssh-server: the tests start an sshd of their own, as this user.
ssh: $(VENV)/.test
	FORKWIRE_SSH=required $(PYTEST) -m ssh tests/rpc/test_ssh.py

# SECONDS in all, a part for each target. What is found is written to tests/fuzz/findings.
SECONDS ?= 600
FUZZED := framing decoding conversation values
fuzz: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@mkdir -p tests/fuzz/findings
	for target in $(FUZZED); do \
		$(BIN)/python tests/fuzz/run.py $$target -max_total_time=$$(($(SECONDS) / 4)) -timeout=5 \
			-rss_limit_mb=1500 -max_len=65536 -artifact_prefix=tests/fuzz/findings/ || exit 1; \
	done

# BACKEND is asyncio, uvloop or trio; START is template, fork or exec.
BACKEND ?= asyncio
START ?= template
soak: SECONDS := 60
soak: $(VENV)/.test
	$(BIN)/python tests/soak/soak.py --seconds $(SECONDS) --backend $(BACKEND) --start $(START)

bench: $(VENV)/.test
	$(BIN)/python benchmarks/pingpong.py
	$(BIN)/python benchmarks/bulk.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/calling.py
	$(BIN)/python benchmarks/executor.py

clean:
	rm -rf $(VENV) .venv-3.* build dist tests/peers/_build

$(VENV)/.test: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Forkwire needs Python 3.11 or newer; none of $(CANDIDATES) is: name one, make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/.check: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[check]'
	@touch $@
