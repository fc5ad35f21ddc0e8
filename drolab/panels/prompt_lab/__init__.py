"""The prompt lab: type a safety prompt, see where it moves the queries and what it does to refusals."""
