"""Chapter 11, exercise keys: a user's keys are together, and no slot is hot."""

from __future__ import annotations

import builtins
import random
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

from redis.crc import key_slot

from labkit.rig import topology
from labkit.teach.exercises import Exercise, Failure, Wrong
from labkit.teach.exercises.cluster.grading import ODD, elsewhere, one_slot
from labkit.teach.exercises.lock.grading import wrong
from labkit.teach.lab import Lab

STUB = '''
class MyKeys:
    """The key names of a shop; each begins with `shop`. An id is any text."""

    def __init__(self, shop):
        raise NotImplementedError

    def profile(self, user):
        raise NotImplementedError

    def cart(self, user):
        raise NotImplementedError

    def orders(self, user):
        raise NotImplementedError

    def product(self, product):
        raise NotImplementedError
'''

REFERENCE = '''
class MyKeys:
    """The key names of a shop; each begins with `shop`. An id is any text."""

    def __init__(self, shop):
        self.shop = shop

    def profile(self, user):
        return self._of(user, "profile")

    def cart(self, user):
        return self._of(user, "cart")

    def orders(self, user):
        return self._of(user, "orders")

    def product(self, product):
        return f"{self.shop}:product:{self._safe(product)}"

    def _of(self, user, what):
        return f"{self.shop}:{{user:{self._safe(user)}}}:{what}"  # the tag is never empty

    @staticmethod
    def _safe(id):
        """A brace in an id would end the tag, or begin one: both are written as numbers, and % as well."""
        return id.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
'''

_OF = 'f"{self.shop}:{{user:{self._safe(user)}}}:{what}"  # the tag is never empty'
_PRODUCT = 'f"{self.shop}:product:{self._safe(product)}"'
_SAFE = 'id.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")'


def _of(said: str) -> tuple[str, str]:
    return _OF, said


def _wrong(violates: str, why: str, *changes: tuple[str, str]) -> Wrong:
    return wrong(REFERENCE, violates, why, *changes)


WRONG = (
    _wrong(
        "slot", "no hash tag: three keys in three slots", _of('f"{self.shop}:user:{self._safe(user)}:{what}"')
    ),
    _wrong(
        "slot",
        "the kind of data is the tag: all carts are in one slot, and a user's keys are in three",
        _of('f"{self.shop}:{{{what}}}:{self._safe(user)}"'),
    ),
    _wrong(
        "slot",
        "the braces hold the whole rest: each of a user's keys has another tag",
        _of('f"{self.shop}:{{{self._safe(user)}:{what}}}"'),
    ),
    _wrong(
        "slot",
        "an id as it is: an empty one, or one that begins with }, makes an empty tag",
        _of('f"{self.shop}:{{{user}}}:{what}"'),
    ),
    _wrong(
        "slot",
        "safe, but an empty id makes an empty tag",
        _of('f"{self.shop}:{{{self._safe(user)}}}:{what}"'),
    ),
    _wrong("hot", "one tag for the whole shop", _of('f"{self.shop}:{{users}}:{self._safe(user)}:{what}"')),
    _wrong(
        "hot",
        "the first letter is the tag: a few dozen slots have all users",
        _of('f"{self.shop}:{{u{self._safe(user)[:1]}}}:{self._safe(user)}:{what}"'),
    ),
    _wrong(
        "hot",
        "the domain of an e-mail address is the tag: one provider has half of all users",
        _of("f\"{self.shop}:{{u{self._safe(user).rpartition('@')[2]}}}:{self._safe(user)}:{what}\""),
    ),
    _wrong(
        "hot",
        "64 groups of users: each slot has hundreds, and only 64 slots are used",
        _of('f"{self.shop}:{{{sum(user.encode()) % 64}}}:{self._safe(user)}:{what}"'),
    ),
    _wrong(
        "hot",
        "one tag for all products: they are in one slot, which cannot be divided",
        (_PRODUCT, 'f"{self.shop}:{{product}}:{self._safe(product)}"'),
    ),
    _wrong(
        "hot",
        "the length of a product's id is the tag: there are few lengths",
        (_PRODUCT, 'f"{self.shop}:product:{{{len(product)}}}:{product}"'),
    ),
    _wrong(
        "changes",
        "hash() of a text is another in each process",
        _of('f"{self.shop}:{{{hash(user) % 16384}}}:{self._safe(user)}:{what}"'),
    ),
    _wrong(
        "same",
        "braces are taken out: a{b and ab are one user",
        (_SAFE, 'id.replace("{", "").replace("}", "")'),
    ),
    _wrong(
        "same",
        "no escape for the escape: { and %7B are one user",
        (_SAFE, 'id.replace("{", "%7B").replace("}", "%7D")'),
    ),
    _wrong("same", "small letters: Ada and ada are two users, and get one key", (_SAFE, _SAFE + ".lower()")),
    _wrong(
        "same",
        "cut off after 50 letters: two long ids that begin alike get one key",
        (_SAFE, _SAFE + "[:50]"),
    ),
    _wrong(
        "same",
        "CRC-32 stands for the id: with some 77,000 ids two are likely to get one key",
        (_SAFE, 'str(__import__("zlib").crc32(id.encode()))'),
    ),
    _wrong("same", "carts and orders under one name: the one overwrites the other", ('"orders")', '"cart")')),
    _wrong(
        "same",
        "a product is named like a user's cart: product 7 is the cart of user 7",
        (_PRODUCT, 'f"{self.shop}:{{user:{self._safe(product)}}}:cart"'),
    ),
    _wrong(
        "same",
        "a product's id ends in the name as it is: {user:7}:cart is a product, too",
        (_PRODUCT, 'f"{self.shop}:{product}"'),
    ),
    _wrong(
        "prefix",
        "the name does not begin with the shop: two shops on one cluster mix their keys",
        _of('f"{{user:{self._safe(user)}}}:{self.shop}:{what}"'),
    ),
    _wrong(
        "answer",
        'bytes: the caller\'s "shop:…" and b"shop:…" are two names in Python',
        (f"return {_PRODUCT}", f"return {_PRODUCT}.encode()"),
    ),
)

KINDS = ("profile", "cart", "orders")
MOST, PARTS = 40, 64
_TAG = "hash tags: only what stands between the first { and the next } counts, unless it is nothing"
_SPREAD = "how many different tags there are: as many as there are"


def _population() -> list[str]:
    """20,000 ids as shops have them: numbers, e-mail addresses, UUIDs; the same each time."""
    chance = random.Random(11)
    numbers = [str(n) for n in range(1, 8001)]
    mails = [f"{chance.choice('abcdefgh')}{n}@example.com" for n in range(6000)]
    return numbers + mails + [str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(6000)]


def _grade(kind: Any, lab: Lab) -> None:
    shop = lab.key("shop")
    made = kind(shop)
    for method in (*KINDS, "product"):
        if not callable(getattr(made, method, None)):
            what = f"MyKeys(…) gives {type(made).__name__}, which has no method {method}()"
            raise Failure("answer", what, "", "the class of the stub: it is handed over itself, not called")
    _check_names(made, shop)
    _check_slots(made)
    _check_same(made, elsewhere(kind)(shop))
    _check_unlike(made)
    _check_spread(made.cart, "users", "cart")
    _check_spread(made.product, "products", "product")
    _check_cluster(made, lab)


def _call(method: str, id: str, name: Any) -> str:
    return f"{method}({id!r}) -> {name!r}"


def _check_names(made: Any, shop: str) -> None:
    for method in (*KINDS, "product"):
        for id in ("7", "", "}", "ünï:{çø}"):
            name = getattr(made, method)(id)
            told = _call(method, id, name)
            if not isinstance(name, str):
                what = f"a key name is text, and this is {type(name).__name__}"
                raise Failure("answer", what, told, f"what {method}() returns")
            if not name.startswith(shop):
                what = f"a key of the shop {shop!r} is to begin with it, so that others' keys are no matter"
                raise Failure("prefix", what, told, "the beginning of your names")


def _check_slots(made: Any) -> None:
    """All that a user has is in one slot, whatever the id."""
    for user in ("7", "ada", *ODD):
        names = [getattr(made, method)(user) for method in KINDS]
        slots = [key_slot(name.encode()) for name in names]
        if len(set(slots)) > 1:
            rows = [_call(method, user, name) for method, name in zip(KINDS, names, strict=True)]
            rows += [f"CLUSTER KEYSLOT {name} -> {slot}" for name, slot in zip(names, slots, strict=True)]
            what = f"the keys of the user {user!r} are in {len(set(slots))} slots"
            raise Failure("slot", what, "\n".join(rows), _TAG)


def _check_same(made: Any, other: Any) -> None:
    """The same names in another process, where hash() begins elsewhere; and each time."""
    for method in (*KINDS, "product"):
        for id in ("7", "ada", "}"):
            first, again = getattr(made, method)(id), _salted(getattr(other, method), id)
            if first != again:
                rows = [_call(method, id, first), "in another process:", _call(method, id, again)]
                what = "the name is another in another process: nobody finds the key again"
                raise Failure(
                    "changes", what, "\n".join(rows), "hash() and chance: what is the same for ever?"
                )


def _salted(call: Callable[[str], Any], id: str) -> Any:
    """What it gives where hash() of a text is another, as it is in each process."""
    real = builtins.hash
    with mock.patch.object(builtins, "hash", lambda one: real(("another process", one))):
        return call(id)


def _check_unlike(made: Any) -> None:
    """No two things have one key."""
    whose: dict[str, tuple[str, str]] = {}
    parts = [getattr(made, method)("7").split(":") for method in (*KINDS, "product")]
    tails = [":".join(its[at:]) for its in parts for at in range(len(its))]  # ids that look like names
    for id in dict.fromkeys((*ODD, *_population()[::20], *tails)):
        for method in (*KINDS, "product"):
            name = getattr(made, method)(id)
            other = whose.setdefault(name, (method, id))
            if other != (method, id):
                rows = [_call(*other, name), _call(method, id, name)]
                what = "two different things have the same key: one overwrites the other"
                raise Failure("same", what, "\n".join(rows), "what your names leave out, or write alike")


def _check_spread(name: Callable[[str], str], whom: str, method: str) -> None:
    """As 20,000 of them fall, no slot is hot, and no part of the slots either."""
    ids = _population()
    slots = [key_slot(name(id).encode()) for id in ids]
    slot, most = Counter(slots).most_common(1)[0]
    if most > MOST:
        some = [id for id, its in zip(ids, slots, strict=True) if its == slot][:2]
        rows = [_call(method, id, name(id)) for id in some] + [f"… {most:,} of {len(ids):,} in slot {slot}"]
        what = f"a hot slot: of {len(ids):,} {whom}, {most:,} are in one slot; {MOST} may be"
        raise Failure("hot", what, "\n".join(rows), f"{_SPREAD} {whom}")
    part, most = Counter(slot * PARTS // topology.SLOTS for slot in slots).most_common(1)[0]
    if most > 1.5 * len(ids) / PARTS:
        first = part * topology.SLOTS // PARTS
        rows = [f"slots {first} to {first + topology.SLOTS // PARTS - 1}: {most:,} of {len(ids):,} {whom}"]
        raise Failure("hot", "they are spread unevenly over the slots", "\n".join(rows), f"{_SPREAD} {whom}")


def _check_cluster(made: Any, lab: Lab) -> None:
    """A transaction over all that a user has, on the real cluster."""
    rc: Any = lab.rc
    for user in ("ada", "", "}", "a}b", "ünï:{çø}"):
        names = {method: getattr(made, method)(user) for method in KINDS}
        told = "\n".join(_call(method, user, name) for method, name in names.items())
        with one_slot(told, _TAG), rc.pipeline(transaction=True) as pipe:
            pipe.hset(names["profile"], "name", "Ada")
            pipe.delete(names["cart"])
            pipe.rpush(names["orders"], "order 1")
            pipe.execute()
        rc.delete(names["profile"])
        rc.delete(names["orders"])


EXERCISE = Exercise(
    stem="cluster",
    name="keys",
    title="A user's keys are together, and no slot is hot",
    statement="""
Name the keys of a shop that is to run on a cluster. Users and products have any text as their id, also an
empty one, or one with braces.

- `profile(user)`, `cart(user)` and `orders(user)` give the names of three keys of a user, in one slot: so
  that a transaction may change all of them.
- `product(product)` gives the key of a product.
- There is no hot slot: of 20,000 users no slot has the keys of more than 40, and the same of products.
- Two different things never have one key, and a name is the same in every process.
- Each name begins with `shop`.
""".strip(),
    answer="MyKeys",
    stub=STUB.strip(),
    hints=(
        "CLUSTER KEYSLOT tells the slot of a name. With braces in it, only what stands between the first { "
        "and the next } decides: {7}:cart and {7}:orders are neighbours.",
        "If nothing stands between them, as in {}:cart, the whole name decides. Which ids make that happen? "
        "Let the tag never be empty.",
        "An id may end the tag, or begin one, where it has braces: write them in another way, and the sign "
        "by which you do that, too (% is %25, { is %7B, } is %7D).",
        'f"{shop}:{{user:{safe}}}:cart", with one tag for each user. A product needs no tag at all.',
    ),
    reference=REFERENCE.strip(),
    wrong=WRONG,
    grade=_grade,
    seconds=20,
)
