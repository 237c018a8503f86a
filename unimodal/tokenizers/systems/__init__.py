"""Published tokenizers whose wiring is their own, one file a system; all others are configs of these and of parts."""
