"""Tries the paper's claims (arXiv 2303.16199): `python -m train.reproduce` performs runs and writes a report.

Uses the trainer and PEFT's baselines. Must never know HTTP or Gradio.
"""
