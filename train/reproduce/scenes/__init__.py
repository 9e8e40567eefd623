"""A multiple-choice benchmark in ScienceQA's published format, drawn and worded by rule, from a seed.

Must never know models or training.
"""
