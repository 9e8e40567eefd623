"""`python -m train.evaluate`: any adapter on any base, by answers, likelihoods, metrics and their table.

Knows data formats, adapters and the serving engine. Must never know training, HTTP or Gradio.
"""
