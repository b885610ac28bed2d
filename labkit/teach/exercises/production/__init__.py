"""Exercises of chapter 10: whom a cache may drop, a million members away, who may do what, a sick server.

A choice of settings is judged by real traffic in a real, small memory. Whether a deletion stalls anybody is
not timed: each command is told by how many elements it goes through while all others wait.
"""

from __future__ import annotations

from labkit.teach.exercises.production import acl, diagnose, drop, policy

EXERCISES = (policy.EXERCISE, drop.EXERCISE, acl.EXERCISE, diagnose.EXERCISE)
