"""Kinds of damage that a file of a run can have, and what a message about them is like."""

import re

CONTENTS = {
    "empty document": b"",
    "no UTF-8": b'{"hash": "\xff\xfe"}\n',
    "no object": b"[]\n",
    "a number": b"3\n",
    "NUL bytes": bytes(100) + b"\n",
    "deep nesting": b'{"a": ' * 100_000 + b"1" + b"}" * 100_000 + b"\n",
    "nesting": b'{"epoch": ' + b"[" * 200 + b"]" * 200 + b"}\n",
    "a long number": b'{"epoch": ' + b"9" * 10_000 + b"}\n",
    "a huge integer": b'{"epoch": ' + b"9" * 400 + b"}\n",
    "a huge float": b'{"epoch": 1e999}\n',
    "NaN": b'{"epoch": NaN}\n',
    "half a character": b'{"epoch": "\\ud800"}\n',
    "a double key": b'{"epoch": 1, "epoch": 1}\n',
    "BOM": b"\xef\xbb\xbf{}\n",
    "no keys": b"{}\n",
    "two values": b"{} {}\n",
}


def assert_named(error, path):
    assert str(path) in str(error)
    assert re.fullmatch(r"[^\n]+\.", str(error))
    assert len(str(error).replace(str(path.parent), "")) < 200
