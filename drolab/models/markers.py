"""Words that stand in the places of texts when a template is tried out.

A template has no reason to treat them as special, and upper, lower, title and the like change them.
"""

SYSTEM, QUERY, REPLY = "dRolab0System", "dRolab0Query", "dRolab0Reply"
VALUE = "dRolab0Value"


def behind_query(text: str) -> str:
    """What stands behind the query."""
    return text.partition(QUERY)[2]
