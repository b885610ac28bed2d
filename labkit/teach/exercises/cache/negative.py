"""Chapter 03, exercise negative: what is not there is remembered too, and for a time of its own."""

from __future__ import annotations

import json
from typing import Any

from labkit.teach.exercises import Exercise
from labkit.teach.exercises.cache.grading import (
    NEGATIVE_TTL,
    THING,
    TTL,
    Query,
    Source,
    Waiting,
    check_error,
    check_hits,
    check_json,
    check_mortal,
    check_other_keys,
    check_shared,
    check_time,
    explored,
    patient,
    quietly,
    same,
    texts,
)
from labkit.teach.exercises.lock.grading import BETWEEN, Story, expires, wrong
from labkit.teach.lab import Lab

STUB = '''
def cached(r, key, load, ttl, negative_ttl):
    """What load() gives; from Redis, if it is there. None: there is no such thing."""
    raise NotImplementedError
'''

REFERENCE = '''
import json

def cached(r, key, load, ttl, negative_ttl):
    """What load() gives; from Redis, if it is there. None: there is no such thing."""
    text = r.get(key)
    if text is not None:
        return None if text == "" else json.loads(text)
    value = load()
    text, seconds = ("", negative_ttl) if value is None else (json.dumps(value), ttl)
    r.set(key, text, px=max(1, round(seconds * 1000)))
    return value
'''

_LOOK = """    text = r.get(key)
    if text is not None:
        return None if text == "" else json.loads(text)
"""
_CHOOSE = 'text, seconds = ("", negative_ttl) if value is None else (json.dumps(value), ttl)'
_SET = "r.set(key, text, px=max(1, round(seconds * 1000)))"
_READ = 'return None if text == "" else json.loads(text)'

WRONG = (
    wrong(
        REFERENCE,
        "falsy",
        "`if value:` where it is read: 0, '' and [] are loaded again and again",
        (
            _LOOK,
            "    text = r.get(key)\n    value = json.loads(text) if text else None\n"
            "    if value or text == '':\n        return value\n",
        ),
    ),
    wrong(
        REFERENCE,
        "falsy",
        "`if not value` where it is written: 0, '' and [] become nothing",
        ("if value is None else", "if not value else"),
    ),
    wrong(
        REFERENCE,
        "falsy",
        "stores only what is true: 0, '' and [] are asked of the database each time",
        (_SET, f"if value or value is None:\n        {_SET}"),
    ),
    wrong(
        REFERENCE,
        "nothing",
        "what is not there is not remembered: each question after it goes to the database",
        (_SET, f"if value is not None:\n        {_SET}"),
    ),
    wrong(
        REFERENCE,
        "nothing",
        "`if text`: the text of nothing is falsy, and nothing is loaded again and again",
        ("if text is not None:", "if text:"),
    ),
    wrong(
        REFERENCE,
        "nothing",
        "nothing is stored as null, and null is taken for a miss",
        (
            _LOOK,
            "    value = json.loads(r.get(key) or 'null')\n    if value is not None:\n        return value\n",
        ),
        ('("", negative_ttl)', '("null", negative_ttl)'),
    ),
    wrong(
        REFERENCE,
        "nothing",
        "a hit gives the mark '' where there is nothing: the caller takes it for a value",
        (_READ, "return json.loads(text or '\"\"')"),
    ),
    wrong(
        REFERENCE,
        "mark",
        "the mark of nothing is JSON that a value may be, too",
        ('("", negative_ttl)', "('\"nothing\"', negative_ttl)"),
        (_READ, "value = json.loads(text)\n        return None if value == 'nothing' else value"),
    ),
    wrong(
        REFERENCE,
        "ttl",
        "SET without a TTL: a value that nobody deletes is never loaded again, however old it is",
        (_SET, "r.set(key, text)"),
    ),
    wrong(
        REFERENCE,
        "ttl",
        "nothing is remembered for ever: what is created later is never found",
        (_SET, f"if value is None:\n        r.set(key, text)\n    else:\n        {_SET}"),
    ),
    wrong(
        REFERENCE,
        "negative_ttl",
        "nothing is remembered as long as values are: what is created is found too late",
        ('("", negative_ttl)', '("", ttl)'),
    ),
    wrong(
        REFERENCE,
        "ttl",
        "values are remembered only as long as nothing is: they are loaded far too often",
        ("(json.dumps(value), ttl)", "(json.dumps(value), negative_ttl)"),
    ),
    wrong(
        REFERENCE,
        "negative_ttl",
        "min() of the two TTLs: where negative_ttl is the longer one, nothing is forgotten too soon",
        ('("", negative_ttl)', '("", min(ttl, negative_ttl))'),
    ),
    wrong(
        REFERENCE,
        "ttl",
        "EX takes whole seconds: 0.3 s become 1 s, and so do 1.9 s",
        (_SET, "r.set(key, text, ex=max(1, int(seconds)))"),
    ),
    wrong(
        REFERENCE,
        "crash",
        "SET, then PEXPIRE: a crash in between leaves a key for ever",
        (_SET, "r.set(key, text)\n    r.pexpire(key, max(1, round(seconds * 1000)))"),
    ),
    wrong(
        REFERENCE,
        "longer",
        "each hit begins the time anew: what is asked for often is never loaded again",
        ("r.get(key)", "r.getex(key, px=round(ttl * 1000))"),
    ),
    wrong(
        REFERENCE,
        "json",
        "a pickle, in base64: loading it runs whatever somebody else has written there",
        ("import json", "import base64, pickle"),
        ("json.dumps(value)", "base64.b64encode(pickle.dumps(value)).decode()"),
        ("json.loads(text)", "pickle.loads(base64.b64decode(text))"),
    ),
    wrong(
        REFERENCE,
        "json",
        "repr and eval: who writes to Redis runs code here",
        ("json.dumps(value)", "repr(value)"),
        ("json.loads(text)", "eval(text)"),
    ),
    wrong(
        REFERENCE,
        "value",
        "text is stored as it is: a string that looks like JSON comes back as something else",
        ("json.dumps(value)", "value if isinstance(value, str) and value else json.dumps(value)"),
        (
            _READ,
            "try:\n            return None if text == '' else json.loads(text)\n"
            "        except ValueError:\n            return text",
        ),
    ),
    wrong(
        REFERENCE,
        "trips",
        "EXISTS, then GET: two round trips for a hit, though GET alone says whether it is there",
        ("text = r.get(key)", "text = r.get(key) if r.exists(key) else None"),
    ),
    wrong(
        REFERENCE,
        "raises",
        "EXISTS and GET in one round trip are two steps: if the key ends in between, None is parsed",
        (
            _LOOK,
            "    there, text = r.pipeline(transaction=False).exists(key).get(key).execute()\n"
            "    if there:\n        return None if text == '' else json.loads(text)\n",
        ),
    ),
    wrong(
        REFERENCE,
        "race",
        "EXISTS and GET in one round trip, and what has expired in between counts as nothing",
        (
            _LOOK,
            "    there, text = r.pipeline(transaction=False).exists(key).get(key).execute()\n"
            "    if there:\n        return json.loads(text) if text else None\n",
        ),
    ),
    wrong(
        REFERENCE,
        "forget",
        "nothing has a key of its own: deleting `key` does not bring the thing back",
        (
            _LOOK,
            "    text, none = r.mget(key, key + ':none')\n    if text or none:\n"
            "        return json.loads(text) if text else None\n",
        ),
        (
            _SET,
            "r.set(key if value is not None else key + ':none', text or '1', "
            "px=max(1, round(seconds * 1000)))",
        ),
    ),
    wrong(
        REFERENCE,
        "shared",
        "a dict in the process before Redis: it knows nothing of a DEL, or of other processes",
        ("import json", "import json\n\nMINE = {}"),
        (_LOOK, "    if key in MINE:\n        return MINE[key]\n" + _LOOK),
        (_SET, f"MINE[key] = value\n    {_SET}"),
    ),
    wrong(
        REFERENCE,
        "forget",
        "a dict in the process behind Redis: after a DEL the old value comes from there",
        ("import json", "import json\n\nMINE = {}"),
        ("value = load()", "value = MINE[key] if key in MINE else MINE.setdefault(key, load())"),
    ),
    wrong(
        REFERENCE,
        "shared",
        "the value in Redis is but a flag, the answer comes from a dict: each process loads its own",
        ("import json", "import json\n\nMINE = {}"),
        ("if text is not None:", "if text is not None and key in MINE:"),
        (_READ, "return MINE[key]"),
        (_SET, f"MINE[key] = value\n    {_SET}"),
    ),
    wrong(
        REFERENCE,
        "meanwhile",
        "the mark of nothing is set while it loads: others take that for an answer",
        (
            "    value = load()\n",
            "    r.set(key, '', px=max(1, round(negative_ttl * 1000)))\n    try:\n        value = load()\n"
            "    except BaseException:\n        r.delete(key)\n        raise\n",
        ),
    ),
    wrong(
        REFERENCE,
        "error",
        "a database that cannot be reached becomes a thing that is not there",
        ("value = load()", "try:\n        value = load()\n    except OSError:\n        value = None"),
    ),
    wrong(
        REFERENCE,
        "error",
        "any failure is answered by a second load: a database in trouble is asked twice as often",
        ("value = load()", "try:\n        value = load()\n    except Exception:\n        value = load()"),
    ),
    wrong(
        REFERENCE,
        "error",
        "a database that is down becomes a thing that is not there",
        ("value = load()", "try:\n        value = load()\n    except Exception:\n        value = None"),
    ),
    wrong(
        REFERENCE,
        "key",
        "reads another key than it writes: there is never a hit, and DEL key forgets nothing",
        ("r.set(key,", "r.set('cache:' + key,"),
        ("r.get(key)", "r.get('cache:' + key + ':')"),
    ),
    wrong(
        REFERENCE,
        "key",
        "puts a prefix before the key: DEL key does not make it forget",
        ("    text = r.get(key)", "    key = f'cache:{key}'\n    text = r.get(key)"),
    ),
    wrong(
        REFERENCE,
        "key",
        "always the same key: one thing's value is given for another",
        ("    text = r.get(key)", "    key = 'product:7'\n    text = r.get(key)"),
    ),
    wrong(
        REFERENCE,
        "load",
        "loads twice for one miss: the database does double work",
        ("value = load()", "value = load() and load()"),
    ),
    wrong(
        REFERENCE,
        "value",
        "a miss gives the JSON text and a hit the value: the caller gets two kinds of answer",
        ("    return value\n", "    return text\n"),
    ),
)


SAID = "cached(r, key, load, 60, 20)"
SAID_NOTHING = "cached(r, key, load, ttl, negative_ttl)"


@quietly
def _grade(cached: Any, lab: Lab) -> None:
    def value(r: Any, key: str, load: Any, ttl: float) -> Any:
        return cached(r, key, load, ttl, NEGATIVE_TTL)

    def nothing(r: Any, key: str, load: Any, ttl: float) -> Any:
        return cached(r, key, load, TTL, ttl)

    check_hits(value, SAID, lab)
    _check_nothing(cached, lab)
    check_other_keys(value, SAID, lab, ("first", "second", None, "third", 0, None, "", "last"))
    check_shared(value, SAID, lab, (THING, 0, None))
    check_json(value, SAID, lab)
    _check_mark(cached, lab)
    check_time(value, "cached(r, key, load, ttl, 20)", lab, THING, (TTL, 100, 1.234, 0.75))
    check_time(value, "cached(r, key, load, ttl, 20)", lab, 0, (TTL, 2.5))
    look = "cached(r, key, load, 60, negative_ttl)"
    check_time(nothing, look, lab, None, (NEGATIVE_TTL, 100, 1.234, 0.75), "negative_ttl")
    check_error(value, SAID, lab)
    _check_meanwhile(cached, lab)
    _check_crash(cached, lab)
    _check_expiry(cached, lab)
    _check_two(cached, lab)


def _check_nothing(cached: Any, lab: Lab) -> None:
    key, story, source = lab.key("thing"), Story("load() gives None: there is no such thing"), Source(None)
    look = "what tells 'there is no such thing' from 'not in Redis'"
    for number in range(3):
        with lab.tap() as tape:
            got = story.call(SAID, cached, lab.r, key, source, TTL, NEGATIVE_TTL)
        story.hold(got is None, "nothing", "there is no such thing: that is None", look)
        what = "there is no such thing, and each time the database is asked again"
        story.hold(source.calls == 1, "nothing", what, look)
        if number:
            what = "a hit is one round trip, also where there is no such thing"
            story.hold(tape.round_trips == 1, "trips", what, "what is asked before the value")


def _check_mark(cached: Any, lab: Lab) -> None:
    """What stands for nothing is no value: a value that looks like it stays what it is."""
    raw, key = lab.client(decode_responses=False), lab.key("thing")
    cached(lab.r, key, Source(None), TTL, NEGATIVE_TTL)
    marks: list[Any] = []
    for text in texts(raw, key.encode()):
        marks += [text, json.dumps(text)]
        try:
            marks.append(json.loads(text))
        except ValueError:
            continue
    for mark in marks:
        if mark is not None:
            key, story, source = (
                lab.key("thing"),
                Story(f"load() gives {mark!r}, a value like any other"),
                Source(mark),
            )
            for _ in range(2):
                got = story.call(SAID, cached, lab.r, key, source, TTL, NEGATIVE_TTL)
                what = "this value is taken for what stands for nothing"
                held = same(got, mark) and source.calls == 1
                story.hold(held, "mark", what, "what stands for nothing: no JSON text may look like it")


def _check_meanwhile(cached: Any, lab: Lab) -> None:
    """While one loads, another asks: it loads too, or waits. It is not told that there is no such thing."""
    key, story, got = lab.key("thing"), Story(f"load() gives {THING!r}"), list[Any]()

    def other(r: Any) -> Any:
        return cached(r, key, Source(THING), TTL, NEGATIVE_TTL)

    ask = patient(cached, other, naps=5)
    story.tell(f"A: {SAID}; while its load() runs, B: the same")
    cached(lab.r, key, Source(THING, lambda: got.append(ask(lab.client()))), TTL, NEGATIVE_TTL)
    story.tell(f"B gets {got[0]!r}")
    held = isinstance(got[0], Waiting) or same(got[0], THING)
    what = "A is still loading, and B takes what A has left in Redis for an answer"
    story.hold(held, "meanwhile", what, "what is written before load() has given something")


def _check_crash(cached: Any, lab: Lab) -> None:
    def run(r: Any, load: Any) -> Any:
        return cached(r, "thing", load, TTL, NEGATIVE_TTL)

    cast = 'A: cached(r, "thing", load, 60, 20); it may crash'
    check_mortal(run, lab, cast, (THING, 0, None))


def _check_expiry(cached: Any, lab: Lab) -> None:
    """It expires at whatever moment."""
    for value, other in (("the thing", "the thing"), (None, None)):
        query = Query(other)

        def fill(r: Any, value: Any = value) -> None:
            cached(r, "thing", Source(value), TTL, NEGATIVE_TTL)

        def ada(r: Any, query: Query = query) -> Any:
            return cached(r, "thing", query, TTL, NEGATIVE_TTL)

        def rule(r: Any, results: list[Any], value: Any = value) -> None:
            assert same(results[0], value), f"load() gives {value!r}, and A gets {results[0]!r}"

        cast = f"In Redis, under thing: {value!r}. A: cached(). It expires at any moment"
        explored(lab, [ada, lambda r: expires(r, "thing")], "race", BETWEEN, cast, setup=fill, invariant=rule)


def _check_two(cached: Any, lab: Lab) -> None:
    """The thing comes into being: A has found nothing, and B finds it; what stays has its own TTL."""
    absent, present = Query(None), Query("the thing")

    def ada(r: Any) -> Any:
        return cached(r, "thing", absent, TTL, NEGATIVE_TTL)

    def bob(r: Any) -> Any:
        return cached(r, "thing", present, TTL, NEGATIVE_TTL)

    def rule(r: Any, results: list[Any]) -> None:
        left = r.pttl("thing")
        kept = cached(r, "thing", Source("loaded anew"), TTL, NEGATIVE_TTL)
        assert kept in (None, "the thing"), f"in the end it is {kept!r}, which nobody has loaded"
        assert kept is not None or left <= NEGATIVE_TTL * 1000, "nothing is remembered for as long as a value"

    cast = "A: cached(), its load() gives None. B: cached(), its load() gives 'the thing'"
    explored(lab, [ada, bob], "race", BETWEEN, cast, invariant=rule)


EXERCISE = Exercise(
    stem="cache",
    name="negative",
    title="A cache that remembers what is not there",
    statement="""Write `cached`: it gives what `load()` gives, from Redis if it is there.

- `load()` gives any value that JSON can hold, also `0`, `""`, `[]` and `False`. Or it gives `None`: there is
  no such thing.
- Both are remembered under `key`, values as JSON: a value for `ttl` seconds, `None` for `negative_ttl`
  seconds (fractions too), counted from the load. For so long `load` is not called again.
- A hit is one round trip. `DEL key` makes it forget, whatever it was.
- Nobody is told `None` while another caller still loads.
- What `load` raises goes to the caller at once, and is not remembered.
- No key is ever without a TTL, even if your process crashes at the worst moment. Between any two of your
  commands the key may expire.""",
    answer="cached",
    stub=STUB.strip(),
    hints=(
        "Three cases have to look different in Redis: not there, there is no such "
        "thing, and a value. And some "
        "values are falsy: what does `if value:` make of 0?",
        "GET gives None only if there is no such key. A value is there as json.dumps(value), which is never "
        "empty. What text is no JSON, so that it can stand for nothing?",
        'The empty string: `text = r.get(key)`, then `if text is not None:` it is a hit, and "" means None.',
        "SET writes the value and its TTL in one step: px=milliseconds, and which of the two TTLs depends on "
        "`value is None`.",
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
)
