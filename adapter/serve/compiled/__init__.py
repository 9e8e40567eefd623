"""The forward pass of packed bases on a CPU, compiled by numba: all layers of `DecoderLayer` in one call.

It must never know requests, text or sampling.
"""
