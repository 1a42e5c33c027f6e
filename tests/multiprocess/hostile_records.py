"""Generated records that try to stop a site: sizes, characters, choices, units."""

import random

# Each alone has broken tokenizers, encoders or parsers somewhere.
NASTY = (
    "",
    " ",
    "\n",
    "\x00",
    "\ud800",
    "\udfff\ud800",
    "\ufeff",
    "\u200b" * 9,
    "\u202e12",
    "Z\u0351\u036b\u0343" * 40,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 30,
    "<end>",
    "<|im_end|><|endoftext|></s>",
    "{}%s%n{0.__class__}",
    "4\n5",
    "\r\r\n",
    "a" * 60_000,
    "1+" * 20_000,
    "\u0000\ufffe\uffff",
    "nan",
)


def _text(rng):
    kind = rng.randrange(5)
    if kind < 3:
        return rng.choice(NASTY)
    if kind == 3:
        return "".join(chr(rng.randrange(0x11_0000)) for _ in range(rng.randrange(1, 60)))
    return "".join(rng.choice("0123456789abc") for _ in range(rng.randrange(1, 3_000)))


def _choices(rng):
    kind = rng.randrange(6)
    if kind == 0:
        return ()
    if kind == 1:
        return (_text(rng),)
    if kind == 2:
        return (_text(rng),) * 4
    if kind == 3:
        return tuple(str(number) for number in range(300))
    return tuple(_text(rng) for _ in range(rng.randrange(2, 9)))


def hostile_fields(rng, number):
    """The fields of one record; `number` keeps ids apart, as the gate would."""
    return {
        "record_id": f"{_text(rng)[:40]}-{number}",
        "question": _text(rng),
        "choices": _choices(rng),
        "answer": _text(rng),
        "rationale": rng.choice((None, _text(rng))),
    }


def hostile_units(seed, *, units=30, most_records=40):
    """Units as (unit id, list of record fields): one record each, and some with far too many."""
    rng = random.Random(seed)
    found = []
    number = 0
    for unit in range(units):
        size = most_records if unit % 10 == 9 else rng.randrange(1, 4)
        records = [hostile_fields(rng, number + at) for at in range(size)]
        number += size
        found.append((f"hostile-{unit}", records))
    return found
