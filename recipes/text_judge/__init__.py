"""The text judge: its labels, and the fit of its weights."""
