"""The response panel: find a query, read its samples under several prompts side by side, label them by hand."""
