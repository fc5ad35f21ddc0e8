"""drolab's models in other people's evaluations: tasks of lm-eval and inspect_ai, under a prompt or with steering.

In order: `subject` (a model, its prompt and its direction, as a harness names them, and its answers), `lm_eval` and
`inspect_ai` (what these ask it with). The last two are imported by name, where their packages are installed.
"""

from drolab.harnesses.subject import Subject

__all__ = ["Subject"]
