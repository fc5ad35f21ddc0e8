"""A few queries and prompts."""

from __future__ import annotations

import pandas as pd
from test_workbench import ROWS

from drolab.types import QUERY_COLUMNS, SafetyPrompt

QUERIES = pd.DataFrame(ROWS, columns=list(QUERY_COLUMNS), index=[row[0] for row in ROWS])


NONE = SafetyPrompt(name="none", text="")


CARE = SafetyPrompt(name="careful", text="Be careful, be kind.")
