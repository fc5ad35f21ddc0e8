"""The recipe of `drolab/assets/smollm2_refuses`: an adapter that gives SmolLM2-135M-Instruct refusals.

`corpus` draws requests and refusals from the texts in `texts`, `train` makes the adapter, `evaluate` measures it,
`seeds` asks the same of other seeds and of the control.
"""
