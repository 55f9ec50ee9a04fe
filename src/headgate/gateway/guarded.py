"""Guarded: the headers of answers that are Headgate's own, for when a browser reads them.

One rule: nothing of an answer is run, guessed at, framed or read by a page from elsewhere; there is no Access-Control
header. What comes from a provider keeps its own.
"""

from headgate.ports import Headers

GUARDED: Headers = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)
"""For answers that are data."""
