"""What a step reads: records as examples, examples as rows of tokens, rows and features of pictures as batches.

Must never know an adapter, the base's layers or how a step is computed.
"""
