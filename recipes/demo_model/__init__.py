"""The recipe of the demo model: its corpus, its training, and the evaluation that prints the model card's figures.

Nothing in drolab imports this package: it makes `drolab/assets/demo` and is not needed to use it.
"""
