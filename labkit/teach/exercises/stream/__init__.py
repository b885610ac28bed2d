"""Exercises of chapter 07: a worker whose crash costs nothing, taking over from the dead, a bounded stream.

What one client does after another is told as calls and answers. What several do at once, and what a crash
leaves behind, is left to the race explorer: the counterexample is its interleaving with the fewest switches.
"""

from __future__ import annotations

from labkit.teach.exercises.stream import reclaim, trim, worker

EXERCISES = (worker.EXERCISE, reclaim.EXERCISE, trim.EXERCISE)
