"""The projection panel: every query under every prompt in one frozen plane."""
