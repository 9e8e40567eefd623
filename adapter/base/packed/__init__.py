"""Weights in 4 and 8 bits, and their products with activations by the integer instructions of the processor.

It must never know which model the weights belong to.
"""
