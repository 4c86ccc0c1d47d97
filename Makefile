# make app    sets everything up and serves the page         make test   sets everything up and passes the tests
# make check  style, types and the import rule               make bench  the measured claims of the README
# make browser  every test in Chromium                    make gpu    the tests of results and endpoints on a GPU
PYTHON ?= python3
VENV   ?= .venv
# First and pinned, so that no later package decides which build of torch comes.
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
FIRST  := $(addprefix tests/browser/test_,accessible.py first_steps.py gate.py main_job.py)

.PHONY: app test browser gpu check bench chromium base clean

app: $(VENV)/app.done
	$(BIN)/python app.py

test: $(VENV)/dev.done check chromium base
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/unit tests/oracle tests/fuzz tests/app --durations=10
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(FIRST) --durations=5

check: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_imports.py

bench: $(VENV)/dev.done base
	$(BIN)/python -m benchmarks

# On a GPU what else runs on the CPU everywhere: the oracles, and the endpoints of an app that computes there.
gpu: $(VENV)/dev.done base
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0} OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist loadfile tests/oracle tests/app

# Every browser test; `make test` runs those of the main job.
browser: $(VENV)/dev.done chromium base
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/browser --durations=5

# Chromium for the browser tests: the one that is there, else one that can be installed, else a message.
chromium: $(VENV)/dev.done
	sh tests/browser/chromium.sh $(BIN)

# The built-in base model, fetched and converted once.
base: $(VENV)/dev.done
	$(BIN)/python -m backends.bases

$(VENV)/app.done: requirements.txt | $(VENV)/torch.done
	$(BIN)/pip install -q -r requirements.txt
	touch $@

$(VENV)/dev.done: requirements.txt requirements-dev.txt | $(VENV)/torch.done
	$(BIN)/pip install -q -r requirements-dev.txt
	touch $@

$(VENV)/torch.done:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Brickyard needs Python 3.11 or newer; say which with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$(TORCH)"
	touch $@

clean:
	rm -rf $(VENV)
