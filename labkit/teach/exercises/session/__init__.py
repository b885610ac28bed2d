"""Exercises of chapter 04: a session that slides, a log-out everywhere, an index that cleans itself.

What one client does after another is told as calls and answers. What several do at once is left to the race
explorer, and the counterexample is its interleaving with the fewest switches.
"""

from __future__ import annotations

from labkit.teach.exercises.session import everywhere, index, sliding

EXERCISES = (sliding.EXERCISE, everywhere.EXERCISE, index.EXERCISE)
