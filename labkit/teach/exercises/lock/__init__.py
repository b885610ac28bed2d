"""Exercises of chapter 08: release and extend what is still yours, a semaphore, the election of a leader.

What one client does after another is told as calls and answers (`Story`). What several do at once is left to
the race explorer, and the counterexample is its interleaving with the fewest switches.
"""

from __future__ import annotations

from labkit.teach.exercises.lock import election, extend, release, semaphore

EXERCISES = (release.EXERCISE, extend.EXERCISE, semaphore.EXERCISE, election.EXERCISE)
