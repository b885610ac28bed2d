"""Exercises of chapter 03: what is not there is remembered, one of many callers loads, and no row is stale.

What one client does after another is told as calls and answers. What several do at once is left to the race
explorer, with a database in plain Python whose statements are steps like those of Redis.
"""

from __future__ import annotations

from labkit.teach.exercises.cache import negative, stampede, update

EXERCISES = (negative.EXERCISE, stampede.EXERCISE, update.EXERCISE)
