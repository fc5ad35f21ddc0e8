"""The DRO panel: train a prompt while you watch, replay what it did to the queries, and compare runs."""
