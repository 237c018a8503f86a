"""The one place that knows what lies in a model folder: file names, settings, hashes, how decoders load."""
