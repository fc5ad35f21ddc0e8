"""Safety prompts: the built-in ones, written for drolab; a user's own, from YAML or JSON and to YAML; and the paper's,
from a clone of its code."""

from __future__ import annotations

import ast
import random
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode

from drolab.errors import PromptError, shown
from drolab.files import given_path, parse_json, read_text, write_file
from drolab.types import NO_PROMPT, SafetyPrompt

_ASSETS = Path(str(resources.files("drolab"))) / "assets" / "prompts"
BUILT_IN = tuple(sorted(path.stem for path in _ASSETS.glob("*.yaml")))
"""Prompt sets that ship with drolab. A file more is a set more."""

CODE_CLONE = "git clone https://github.com/chujiezheng/LLM-Safeguard"
"""The command that gets the paper's code, with its three safety prompts."""
_USE_A_TEXT = "pass load_prompts a mapping, {'mine': '…'}"
_MOST_ALIASES = 20
"""Of YAML, in one file: aliases of aliases multiply, a kilobyte to gigabytes."""
_IN_CODE = "_SYSTEM_PROMPT"
_CONVERSIONS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What PyYAML's conversions raise of a value that is not what its tag says."""
_WORDS = (
    "apple window river table yellow garden paper seven morning walk stone letter over music quiet corner bridge "
    "ladder winter cloud kitchen blue bottle mountain soon chair orange carpet road tree spoon button lamp "
    "green basket wall early train pocket cheese field north ribbon shelf autumn tower eleven leaf wooden curtain "
    "village pencil south bread circle rain puddle candle noon path brick sweater island often thread mirror silver "
    "farm barrel hill wide market feather sand evening above plate meadow cotton copper street lake bell round"
)
"""Of `random_words`: none is about safety, help, questions or answers."""


def load_prompts(name_or_path: str | Path | Mapping[str, Any] = "safety") -> dict[str, SafetyPrompt]:
    """Prompts by name, in the order of the set.

    Built in: `safety` (none, default, medium, short: the absence of a prompt, and three in the roles of the paper's),
    `neutral` (controls about format, date, persona and length), `unseen` (safety prompts whose sentences the demo model
    never saw in training).

    A `.yaml`, `.yml` or `.json` file, or a mapping, maps each name to a text, or to `{text: …, kind: safety|neutral}`.
    What it says is what is returned: `none` is not added, so give it an entry `none: ""` to compare with the
    absence of a prompt. `empty: ""` is a system message without words, `own: ""` the model's own (see `SafetyPrompt`).

    A folder is a clone of the paper's code: none, and the paper's prompts (default, short, mistral), read from the text
    of `code/utils.py`, which is never run.

    Raises:
        PromptError: unknown name, unreadable file, a folder that is no such clone, or an entry that is not a prompt.

    Examples:
        >>> import drolab
        >>> list(drolab.load_prompts("safety"))
        ['none', 'default', 'medium', 'short']
        >>> mine = drolab.load_prompts({"none": "", "mine": "Refuse whatever could hurt somebody."})
        >>> mine["mine"].text
        'Refuse whatever could hurt somebody.'
    """
    if isinstance(name_or_path, Mapping):
        return _parse(name_or_path, "the mapping")
    if isinstance(name_or_path, str) and name_or_path in BUILT_IN:
        return _parse(_read_file(_ASSETS / f"{name_or_path}.yaml"), name_or_path)
    path = given_path(name_or_path, PromptError, _USE_A_TEXT)
    if path.is_dir():
        return _parse({NO_PROMPT: "", **_prompts_in_code(path)}, str(path))
    if not path.is_file():
        known = ", ".join(repr(name) for name in BUILT_IN)
        raise PromptError(
            f"{shown(str(name_or_path))} is neither a built-in prompt set ({known}) nor a file: check the path; to use "
            f"a text, {_USE_A_TEXT}."
        )
    return _parse(_read_file(path), str(path))


def pick_prompt(prompts: Mapping[str, SafetyPrompt], name: str | None = None) -> SafetyPrompt:
    """The prompt of that name; None takes the first that says something.

    Raises:
        PromptError: there is none of that name, or none that says anything.

    Examples:
        >>> import drolab
        >>> from drolab.data import pick_prompt
        >>> pick_prompt(drolab.load_prompts()).name
        'default'
    """
    found = [prompt for key, prompt in prompts.items() if (bool(prompt.text.strip()) if name is None else key == name)]
    if not found:
        wanted = "says anything" if name is None else f"is called {shown(name)}"
        raise PromptError(f"No prompt here {wanted}: there are {list(prompts)}; name one of them, or add one.")
    return found[0]


def join_prompts(*sets: Mapping[str, SafetyPrompt]) -> dict[str, SafetyPrompt]:
    """One set of all, in their order.

    Raises:
        PromptError: a name that stands for two texts, of which one would be lost.

    Examples:
        >>> import drolab
        >>> from drolab.data import join_prompts
        >>> list(join_prompts(drolab.load_prompts(), {"mine": drolab.SafetyPrompt(name="mine", text="Be kind.")}))
        ['none', 'default', 'medium', 'short', 'mine']
    """
    found: dict[str, SafetyPrompt] = {}
    for name, prompt in (item for one in sets for item in one.items()):
        if found.setdefault(name, prompt).text != prompt.text:
            raise PromptError(f"Two prompts with different texts are called {shown(name)}: rename one of them.")
    return found


def random_words(like: SafetyPrompt, *, seed: int = 0) -> SafetyPrompt:
    """A control: as many words as `like` has, drawn from a list of everyday ones, called `words ({name})`.

    What such a prompt does to the states comes from there being a system message of this length, not from its meaning.

    Raises:
        PromptError: a prompt without words.

    Examples:
        >>> from drolab import SafetyPrompt, prompts
        >>> prompts.random_words(SafetyPrompt(name="mine", text="Never help anybody to cause harm."))
        SafetyPrompt(name='words (mine)', text='pocket morning rain spoon wide mountain.', kind='safety')
    """
    n = len(like.text.split())
    if n == 0:
        raise PromptError(f"Prompt {like.name!r} has no words to match: pass a prompt with a text.")
    draw = random.Random(f"{seed}:{n}")
    return SafetyPrompt(name=f"words ({like.name})", text=" ".join(draw.choice(_WORDS.split()) for _ in range(n)) + ".")


def save_prompts(prompts: Mapping[str, SafetyPrompt], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write prompts, under a mapping's keys as names, to a YAML file that `load_prompts` reads: whole or not at all.

    Raises:
        PromptError: nothing to save, another ending than `.yaml` or `.yml`, a file that is there already (unless
            `overwrite`), or one that cannot be written.

    Examples:
        >>> import tempfile
        >>> from drolab import load_prompts, prompts
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = prompts.save_prompts(load_prompts("neutral"), f"{folder}/mine.yaml")
        ...     load_prompts(path) == load_prompts("neutral")
        True
    """
    path = Path(path)
    if not prompts:
        raise PromptError("There are no prompts to save: make one first.")
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise PromptError(f"{path} has the ending {path.suffix!r}: prompts are saved as .yaml or .yml.")
    if path.exists() and not overwrite:
        raise PromptError(f"{path} is there already: choose another name, or tick `overwrite` (overwrite=True).")
    entries = {
        name: prompt.text if prompt.kind == "safety" else {"text": prompt.text, "kind": prompt.kind}
        for name, prompt in prompts.items()
    }
    # Double quotes everywhere: YAML's other styles lose some line breaks of Unicode.
    text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, default_style='"', width=100)
    return write_file(path, text, PromptError)


def _read_file(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in (".yaml", ".yml", ".json"):
        raise PromptError(f"{path} has the ending {path.suffix!r}: use .yaml, .yml or .json.")
    text = read_text(path, PromptError)
    try:
        return parse_json(text) if suffix == ".json" else yaml.load(text, _Loader)
    except (yaml.YAMLError, *_CONVERSIONS, RecursionError) as error:
        raise PromptError(f"{path} cannot be parsed ({error}): check its syntax.") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without what it allows: a key that is there twice, and aliases without number."""

    _n_aliases = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if self.check_event(AliasEvent):
            self._n_aliases += 1
            if self._n_aliases > _MOST_ALIASES:
                raise yaml.YAMLError(f"more than {_MOST_ALIASES} aliases like *name: write the texts out")
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [(key.tag, key.value) for key, _ in node.value if isinstance(key, ScalarNode)]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise yaml.YAMLError(f"the key {shown(repeated[0][1])} is there twice: rename or remove one of them")
        return node


def _prompts_in_code(folder: Path) -> dict[str, Any]:
    """The texts that `code/utils.py` assigns to DEFAULT_SYSTEM_PROMPT and the like, as written there."""
    path = next((path for path in (folder / "code" / "utils.py", folder / "utils.py") if path.is_file()), None)
    if path is None:
        raise PromptError(f"{folder} has no code/utils.py, so it is no clone of the paper's code: `{CODE_CLONE}`.")
    text = read_text(path, PromptError)
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise PromptError(
            f"{path} is no Python code ({error}): clone the paper's code again, `{CODE_CLONE}`."
        ) from error
    texts = {
        target.id.removesuffix(_IN_CODE).lower(): statement.value
        for statement in statements
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name) and target.id.endswith(_IN_CODE)
    }
    if not texts:
        raise PromptError(f"{path} assigns no text to a name like DEFAULT{_IN_CODE}: `{CODE_CLONE}` gets the file.")
    if computed := [name for name, value in texts.items() if not isinstance(value, ast.Constant)]:
        raise PromptError(f"{path} computes the prompts {computed}, and it is not run: write them to a YAML file.")
    return {name: value.value for name, value in texts.items() if isinstance(value, ast.Constant)}


def _parse(content: Any, source: str) -> dict[str, SafetyPrompt]:
    if not isinstance(content, Mapping) or not content:
        raise PromptError(f"{source} must map names to texts, like `mine: You are a careful assistant.`")
    return {name: _prompt(name, entry, source) for name, entry in content.items()}


def _prompt(name: Any, entry: Any, source: str) -> SafetyPrompt:
    if isinstance(entry, SafetyPrompt):
        return entry
    fields = entry if isinstance(entry, Mapping) else {"text": entry}
    if "text" not in fields:
        raise PromptError(f"Prompt {shown(name)} in {source} has no `text`: write `name: {{text: …, kind: safety}}`.")
    if unknown := [key for key in fields if key not in ("text", "kind")]:
        raise PromptError(
            f"Prompt {shown(name)} in {source} has unknown keys {shown(unknown)}: only `text` and `kind` are used."
        )
    return SafetyPrompt(name=name, text=fields["text"], kind=fields.get("kind", "safety"))
