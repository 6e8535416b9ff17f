"""Fingerprints of tokens, for the log."""

from __future__ import annotations

import pytest

from zendesk_oauth.fingerprints import fingerprint, fingerprints


def test_a_token_always_has_the_same_fingerprint_and_another_one_another():
    assert fingerprint('one-token') == fingerprint('one-token')
    assert len({fingerprint(f'token-{number}') for number in range(1000)}) == 1000


def test_a_fingerprint_is_the_head_of_the_sha_256():
    # printf abc | sha256sum
    assert fingerprint('abc') == '#ba7816bf'


def test_the_code_and_the_tokens_are_told_and_nothing_else():
    data = {'refresh_token': 'abc', 'code': 'abc', 'client_secret': 'abc', 'code_verifier': 'abc', 'state': 'abc'}
    assert fingerprints(data) == 'code #ba7816bf, refresh token #ba7816bf'


@pytest.mark.parametrize('token', ['', None, 5, ['abc'], {'abc': 'abc'}])
def test_what_is_no_token_has_none(token):
    assert fingerprints({'access_token': token}) == ''


def test_a_token_edited_into_something_that_is_not_utf_8_has_one():
    assert fingerprint('\ud800').startswith('#')
