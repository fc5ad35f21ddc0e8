"""What a notebook's tables say, in three sentences of this run's own numbers: the answer to its question, what it rests
on, and what to be careful of.

One function for each notebook, in their order. Each takes the tables that the notebook shows and says no more than they
do: an effect is one only if its whole interval says so, and what could not be measured is said to be so.
"""

from __future__ import annotations
