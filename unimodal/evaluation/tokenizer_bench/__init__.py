"""One fair comparison of media tokenizers: the same files, the same judges, equal bits, beside everyday codecs.

    unimodal evaluate --suite tokenizers --tokenizers A B C --data FOLDER --out report.json

- `entries.py` the tokenizers that are compared; `items.py` the files, read alike for all of them.
- `pictures.py` what is measured of pictures, by the networks of `picture_judges.py`; `picture_codecs.py` JPEG, WebP and
  AVIF at the same bytes; `inception.py` the network of the FID; `legibility.py` words that a reader must still read.
- `sound_bench.py` what is measured of sounds, by `sound_judges.py`, `speaker_judge.py`, `moonshine.py`, `utmos.py`, in
  processes of `workers.py`; `sound_rates.py` how many codebooks are decoded; `sound_codecs.py` Opus at the same bits.
- `film_bench.py` what is measured of films, frame by frame; `film_codecs.py` H.264 and VP9 at the same bytes.
- `timing.py` speed and memory of a tokenizer.
- `store.py` keeps what is measured, so that an interrupted bench goes on; `tables.py` and `plots.py` show it.
- `run.py` puts these together, `write.py` leaves the report.
"""
