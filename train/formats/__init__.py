"""The formats of training data: reads files of records into conversations, and says what is wrong with them.

Must never know tokens, tensors or models, and opens no images.
"""
