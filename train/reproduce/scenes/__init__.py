"""A multiple-choice benchmark in ScienceQA's published format, drawn and written by rule, from a seed."""
