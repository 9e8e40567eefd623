"""The paper's claims (arXiv 2303.16199) tried anew: `python -m train.reproduce`."""
