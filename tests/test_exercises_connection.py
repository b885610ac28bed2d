"""Chapter 01's graders accept right answers that look unlike the reference."""

from __future__ import annotations

import pytest

from labkit.rig.connection import supports
from labkit.rig.server import Server
from labkit.teach import check
from labkit.teach.exercises import load

ONE_HASH = """
SCRIPT = '''
local reply = redis.call('HGET', KEYS[2], ARGV[1])
if not reply then
    reply = redis.call('INCR', KEYS[1])
    redis.call('HSET', KEYS[2], ARGV[1], reply)
    redis.call('HEXPIRE', KEYS[2], ARGV[2], 'FIELDS', 1, ARGV[1])
end
return tonumber(reply)
'''

def count_once(r, counter, request, remember):
    return r.eval(SCRIPT, 2, counter, f"{counter}:seen", request, remember)
"""

UNIT_DRAW = """
import redis

def retry(call, attempts, base, cap, sleep, uniform):
    limit = min(cap, base)
    while True:
        attempts -= 1
        try:
            return call()
        except redis.ConnectionError:
            if not attempts:
                raise
        sleep(limit * uniform(0, 1))
        limit = min(cap, 2 * limit)
"""


def _grade(name: str, source: str) -> str:
    exercise = next(exercise for exercise in load("connection") if exercise.name == name)
    return str(check.grade(exercise, exercise.build(source)))


@pytest.fixture
def fields_expire() -> None:
    with Server() as server:
        if not supports(server.client(), "HEXPIRE"):
            pytest.skip("needs Redis 7.4, where fields of a hash may expire")


@pytest.mark.usefixtures("fields_expire")
def test_count_once_may_keep_one_hash_whose_fields_expire() -> None:
    assert _grade("count_once", ONE_HASH).startswith("✓ correct")


@pytest.mark.usefixtures("fields_expire")
def test_count_once_rejects_a_hash_some_of_whose_fields_stay() -> None:
    stay = "    if reply > 3 then return reply end\n"
    some = ONE_HASH.replace("    redis.call('HEXPIRE'", f"{stay}    redis.call('HEXPIRE'")
    assert "does not expire" in _grade("count_once", some)


def test_retry_may_scale_one_draw_by_the_limit() -> None:
    assert _grade("retry", UNIT_DRAW).startswith("✓ correct")
