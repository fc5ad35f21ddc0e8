"""The same questions as a task of inspect_ai."""

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import exact
from inspect_ai.solver import generate


@task
def replies(file: str) -> Task:
    asked = json_dataset(file, FieldSpec(input="question", target="answer"))
    return Task(dataset=asked, solver=generate(), scorer=exact(), config=GenerateConfig(temperature=0, max_tokens=24))
