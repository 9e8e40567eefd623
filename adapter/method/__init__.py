"""The paper: what an adapter is and computes (arXiv 2303.16199, sections 3.1 to 3.3; V2: arXiv 2304.15010).

Tensors, and an adapter's own two files. Must never know the base's files, requests, servers or training.
"""
