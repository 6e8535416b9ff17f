"""Fingerprints: the log tells which token or code it is about, and that it has changed, without telling the token."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

SECRETS = ('code', 'access_token', 'refresh_token')


def fingerprint(secret: str) -> str:
    """
    Return `#` and eight hexadecimal digits of the secret's SHA-256.

    That is too little to find a random token with, and enough to tell two apart. Not for passwords, which can be
    guessed.
    """
    return '#' + hashlib.sha256(secret.encode('utf-8', 'replace')).hexdigest()[:8]


def fingerprints(data: Mapping[str, Any]) -> str:
    """Return the fingerprints of the code and the tokens in `data`, as in "access token #0c6a5db0"."""
    found = {name.replace('_', ' '): data[name] for name in SECRETS if isinstance(data.get(name), str)}
    return ', '.join(f'{name} {fingerprint(secret)}' for name, secret in found.items() if secret)
