"""Data recipes of the shipped adapters: one module a skill, plain text in, `Example`s out. No models, no training."""
