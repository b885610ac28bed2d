"""Exercises of chapter 11: key names, a batch over many slots, and a retry that survives a failover.

The graders' cluster is a real one: what is refused there (CROSSSLOT, CLUSTERDOWN) is refused by its nodes.
"""

from __future__ import annotations

from labkit.teach.exercises.cluster import credit, keys, read_many

EXERCISES = (keys.EXERCISE, read_many.EXERCISE, credit.EXERCISE)
