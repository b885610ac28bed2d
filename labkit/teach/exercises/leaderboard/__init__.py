"""Exercises of chapter 09: scores that nobody loses, who is around me, who was first, and the week's total.

What one client does after another is told as calls and answers; what several do at once, and what a crash
leaves behind, is left to the race explorer. What an answer reads of a board is counted, in scripts too.
"""

from __future__ import annotations

from labkit.teach.exercises.leaderboard import around, score, ties, week

EXERCISES = (score.EXERCISE, around.EXERCISE, ties.EXERCISE, week.EXERCISE)
