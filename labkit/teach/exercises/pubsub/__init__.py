"""Exercises of chapter 06: a listener that can be relied on, gaps that are noticed, a state to begin with.

A listener has a thread of its own, so its grader waits for what must happen, and tells what did not. Where
several are at work at once, the race explorer tries each order; a subscription is a step of it like others.
"""

from __future__ import annotations

from labkit.teach.exercises.pubsub import gaps, listener, snapshot

EXERCISES = (listener.EXERCISE, gaps.EXERCISE, snapshot.EXERCISE)
