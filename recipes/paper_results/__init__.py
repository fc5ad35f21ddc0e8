"""The table of the paper's released results that ships with drolab."""
