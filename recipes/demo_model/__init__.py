"""The recipe of the demo model: its corpus, its training, and the evaluation that prints the model card's figures.

`corpus` draws chats from the texts in `texts`, `train` makes `drolab/assets/demo` of them, `evaluate` measures it.
"""
