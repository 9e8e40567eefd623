"""The recipe of `extract`: messages become JSON objects."""
