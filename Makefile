# Everything here sets itself up: a virtual environment in .venv, with the exact versions of requirements.lock.
PYTHON ?= python3
BIN = .venv/bin

# A photograph of a person in the public domain, which comes with scikit-image.
PHOTO = $$($(BIN)/python -c "import skimage.data; print(skimage.data.__path__[0])")/astronaut.png

.PHONY: demo test coverage test-gpu types wheel book clean

# First a rendered photo moves like a film of the same person, so that the right answer is known, and the result can be
# measured. Then a photograph: its face is found, moves like a rendered film, and is put back.
demo: .venv/ready
	$(BIN)/minimodel synthesize --output runs/faces --clips 1 --size 256
	$(BIN)/minimodel evaluate --weights portrait --data runs/faces/ada.mp4
	$(BIN)/minimodel animate --source runs/faces/ada.png --driving runs/faces/ada.mp4 --crop none \
		--mode standard --side-by-side --output runs/demo.mp4
	$(BIN)/minimodel animate --source "$(PHOTO)" --driving data_samples/dev.mp4 --paste --side-by-side \
		--show-crops runs/demo-crops.png --output runs/demo-photo.mp4

# All that the code host runs. The notebooks are executed, and must give what they show. One of them trains, here for
# some seconds only. Two processes of one thread take less time than one of two threads.
test: export OMP_NUM_THREADS = 1
test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n 2 --dist worksteal tests
	MINIMODEL_MINUTES=0.4 $(BIN)/pytest -q -n 2 --dist loadfile --nbval --nbval-current-env notebooks

# The share of the package's lines that its tests run. Counting takes as long as the tests do.
coverage: .venv/ready
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# The package's tests on a GPU, which commands then take, and the tests that compare it with the CPU. With
# MINIMODEL_DEVICE=cpu the latter compare the CPU with itself.
test-gpu: export MINIMODEL_DEVICE ?= cuda
test-gpu: .venv/ready
	$(BIN)/pytest -q tests

# The package by the type checker.
types: .venv/ready
	$(BIN)/mypy

# The wheel in build/wheel, and an animation with it in an empty environment outside this folder.
wheel: .venv/ready
	$(BIN)/python tools/try_wheel.py

# The course as pages for a browser, in build/book, from the notebooks as they are.
book: .venv/ready
	$(BIN)/python tools/book.py

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf .venv build *.egg-info
