# Two commands: `make demo` and `make test`. Everything lives in $(VENV); nothing is installed twice.
VENV ?= .venv
BIN := $(VENV)/bin
# The first Python of at least 3.11 that can make a virtual environment.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  if $$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$p; break; fi; done)
# Where torch comes from: the configured indexes, or one more that you name, for a build without CUDA say.
TORCH_INDEX ?=
# What a study draws its cases from: by default today's date.
SEED ?= $(shell date +%Y%m%d)
PIP := $(BIN)/python -m pip --disable-pip-version-check
# piper is a GPL program: it speaks sentences for `make nano` from an environment of its own and is never imported.
PIPER := $(VENV)-piper

.DEFAULT_GOAL := help
.PHONY: help demo test lowest study lint format nano nano2-data nano2-tokenizers nano2 smol2

help:
	@echo "make demo    install into $(VENV), run the tour with the nano model, say where its gallery lies"
	@echo "make test    install the development tools too, run the test suite (make test ARGS='-k vocabulary')"
	@echo "             an eighth of every sweep of systems, bases, decoders, pages; all of them: make test ARGS='--sweep whole'"
	@echo "make lowest  the core of the suite on the lowest versions of everything     make test PYTHON=python3.13 VENV=.venv313"
	@echo "make study   random campaigns and small trainings whole, their table in docs/study.md (make study SEED=7 ARGS='-k vocabulary')"
	@echo "make lint    ruff format --check, ruff check, mypy          make format    let ruff rewrite"
	@echo "make nano    from nothing to model_cards/nano: data, tokenizers, codes, decoder, evaluation, card"
	@echo "make nano2-data, then nano2-tokenizers, then nano2: its successor, in parts of half an hour, four hours and a day"
	@echo "make smol2   behind them: SmolLM2-135M taught with the tokenizers of nano 2"

demo: $(VENV)/.core
	$(BIN)/python recipes/demo.py $(ARGS)

# Of tests marked `sweep`, an eighth of the cases (tests/campaigns.py); all: make test ARGS='--sweep whole', as .ci/run does.
# Bytecode is kept even where the environment says otherwise: each worker would compile all of it again, for 12 s.
test: $(VENV)/.dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist loadfile --sweep 1/8 $(ARGS)

# The lowest versions that pyproject.toml allows, beside the torch that $(VENV) has, and the core of the suite on them.
LOWEST := $(VENV)-lowest
CORE ?= tests/vocabulary tests/sequence tests/text tests/model tests/objectives tests/generation tests/tokenizers tests/export
lowest: $(LOWEST)/.made
	$(LOWEST)/bin/python -m pytest -n auto --dist loadfile $(CORE) $(ARGS)

$(LOWEST)/.made: pyproject.toml $(VENV)/.torch
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip --disable-pip-version-check install uv
	$(BIN)/python -m pip freeze | grep '^torch==' > $(LOWEST)/torch.txt
	$(LOWEST)/bin/python -m pip --disable-pip-version-check install --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $(LOWEST)/torch.txt
	$(LOWEST)/bin/python -m uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct --constraint $(LOWEST)/torch.txt -e ".[dev]"
	@touch $@

# Random campaigns, small trainings and products whole, for hours; the table goes to docs/study.md. Another seed, other
# cases. In parts: make study ARGS=tests/generation
study: $(VENV)/.dev
	UNIMODAL_STUDY=1 UNIMODAL_SEED=$(SEED) $(BIN)/python -m pytest -m study -n auto --dist worksteal --timeout 7200 \
	  --hypothesis-seed=$(SEED) $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Each step skips what it finds done and resumes what it finds half done, so after an interruption run it again.
nano: $(VENV)/.dev $(PIPER)/.made
	$(BIN)/python tools/fetch_data.py --set all
	$(BIN)/python tools/prepare_images.py
	$(BIN)/python tools/prepare_views.py
	$(BIN)/python tools/prepare_clips.py
	$(BIN)/python tools/make_speech.py sentences
	$(BIN)/python tools/make_speech.py speak --piper "$(PIPER)/bin/python -m piper"
	$(BIN)/python tools/make_speech.py pack
	$(BIN)/python recipes/train_image_tokenizer.py recipes/configs/image_tokenizer.yaml
	$(BIN)/python recipes/train_video_tokenizer.py recipes/configs/video_tokenizer.yaml
	$(BIN)/python recipes/train_audio_tokenizer.py recipes/configs/audio_tokenizer.yaml
	$(BIN)/python recipes/encode_media.py
	$(BIN)/python recipes/train_nano.py recipes/configs/nano_pictures.yaml
	$(BIN)/python recipes/train_nano.py recipes/configs/nano_clips.yaml
	$(BIN)/python recipes/train_nano.py recipes/configs/nano.yaml
	$(BIN)/python recipes/train_nano.py recipes/configs/nano_speech.yaml
	$(BIN)/python recipes/assemble_nano.py
	$(BIN)/python tools/make_drafts.py model_cards/nano --training-pictures data/prepared
	$(BIN)/unimodal evaluate --suite image_reconstruction --suite video_reconstruction --suite picture_naming \
	  --suite picture_drawing --suite clip_naming --suite clip_drawing \
	  --model model_cards/nano --limit 120 --out model_cards/nano/report.json
	$(BIN)/unimodal evaluate --suite speech_reconstruction --suite transcription --suite speaking \
	  --model model_cards/nano --limit 40 --out model_cards/nano/report_speech.json
	$(BIN)/python recipes/make_gallery.py
	$(BIN)/python recipes/write_card.py

# nano 2. Needs flite and espeak-ng. Pictures and clips beside speech need not wait for each other on two cores.
nano2-data: $(VENV)/.dev $(PIPER)/.made
	$(BIN)/python tools/fetch_data.py $(foreach set,images video audio text clipart sounds voices recordings,--set $(set))
	$(BIN)/python tools/prepare_images.py
	$(BIN)/python tools/prepare_views.py
	$(BIN)/python tools/prepare_pictures.py
	$(BIN)/python tools/prepare_clips.py
	$(BIN)/python tools/prepare_scenes.py
	$(BIN)/python tools/write_clips.py
	$(BIN)/python tools/make_voices.py sentences
	$(BIN)/python tools/make_voices.py speak --piper "$(PIPER)/bin/python -m piper"
	$(BIN)/python tools/make_recordings.py
	$(BIN)/python tools/pack_voices.py --skip-worn
	$(PIP) install --no-deps tinysoundfont
	$(BIN)/python tools/prepare_sounds.py

nano2-tokenizers: nano2-data
	$(BIN)/python recipes/train_tokenizer.py recipes/configs/picture_tokenizer.yaml
	$(BIN)/python recipes/train_tokenizer.py recipes/configs/picture_known.yaml
	$(BIN)/python recipes/train_tokenizer.py recipes/configs/clip_tokenizer.yaml
	$(BIN)/python recipes/train_tokenizer.py recipes/configs/speech_words.yaml
	$(BIN)/python recipes/train_tokenizer.py recipes/configs/speech_tokenizer.yaml
	$(BIN)/python recipes/train_tokenizer.py recipes/configs/speech_sound.yaml
	cp data/models/picture_known/* model_cards/nano2/image_tokenizer
	cp data/models/clip_tokenizer/* model_cards/nano2/video_tokenizer
	mkdir -p model_cards/nano2/audio_tokenizer
	cp data/models/speech_sound/* model_cards/nano2/audio_tokenizer

nano2: $(VENV)/.dev
	$(BIN)/python recipes/encode_media.py --set 'tokenizers={image: model_cards/nano2/image_tokenizer, video: model_cards/nano2/video_tokenizer, audio: model_cards/nano2/audio_tokenizer}'
	$(BIN)/python recipes/train_nano.py recipes/configs/nano2.yaml
	$(BIN)/python recipes/train_nano.py recipes/configs/nano2_end.yaml
	$(BIN)/python recipes/train_nano.py recipes/configs/nano2_more.yaml
	$(BIN)/python recipes/train_nano.py recipes/configs/nano2_longer.yaml
	$(BIN)/python recipes/assemble_nano.py recipes/configs/assemble_nano2.yaml
	$(BIN)/unimodal evaluate --suite picture_naming --suite scene_reading --suite conversation --suite clip_naming \
	  --suite picture_variety --suite moving --model model_cards/nano2 --out model_cards/nano2/report.json
	$(BIN)/unimodal evaluate --suite sound_naming --suite everyday_speech --model model_cards/nano2 --limit 30 \
	  --out model_cards/nano2/report_more.json
	$(BIN)/python recipes/make_gallery.py --set model=model_cards/nano2
	$(BIN)/python recipes/write_nano2_card.py \
	  --set 'metrics=[data/runs/nano2/metrics.jsonl, data/runs/nano2_end/metrics.jsonl, data/runs/nano2_more/metrics.jsonl, data/runs/nano2_longer/metrics.jsonl]'

# Needs what `make nano2` encoded, and the tokenizers in model_cards/nano2.
smol2: $(VENV)/.dev
	$(BIN)/python tools/fetch_data.py --set models
	$(BIN)/python recipes/prepare_smol.py recipes/configs/smol2_data.yaml
	$(BIN)/python recipes/finetune_lora.py recipes/configs/smol2.yaml
	$(BIN)/python recipes/finetune_lora.py recipes/configs/smol2_more.yaml
	$(BIN)/python recipes/assemble_smol.py recipes/configs/assemble_smol2.yaml
	$(BIN)/unimodal evaluate --suite picture_naming --suite clip_naming --suite text_forgetting --suite scene_reading \
	  --model model_cards/smol2 --limit 200 --out model_cards/smol2/report.json
	$(BIN)/unimodal evaluate --suite picture_variety --model model_cards/smol2 --limit 16 --out model_cards/smol2/report_drawing.json
	$(BIN)/unimodal evaluate --suite sound_naming --suite everyday_speech --model model_cards/smol2 --limit 10 \
	  --out model_cards/smol2/report_speech.json
	$(BIN)/python recipes/write_smol_card.py recipes/configs/smol2_card.yaml

# Stamps: an installation is done again only when pyproject.toml changes.
$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with venv was found; install one, or name it: make demo PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(PIPER)/.made: $(VENV)/.made
	$(PYTHON) -m venv $(PIPER)
	$(PIPER)/bin/python -m pip --disable-pip-version-check install "piper-tts==1.8.0"
	@touch $@

# torch first and alone, so that nothing installed later can bring another build of it; what it needs comes with the rest.
$(VENV)/.torch: $(VENV)/.made
	$(PIP) install --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "torch>=2.10,<2.14"
	@touch $@

# Then a torchaudio that is built as this torch is, where one is to be had: without it transformers loads no model on its own.
FIT := $(BIN)/python tools/fit_torchaudio.py $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

$(VENV)/.core: pyproject.toml $(VENV)/.torch
	$(PIP) install -e .
	$(FIT)
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(PIP) install -e ".[dev]"
	$(FIT)
	@touch $(VENV)/.core $@
