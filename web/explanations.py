"""
The sentences of the panel: one for each step of an exchange, by name, and one for the whole exchange.

The visible sentences explain the state, the code verifier, the single refresh, what Zendesk deletes at a refresh, and
what a thief can do with a stolen code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """
    The explanation of a step: a sentence, the specification, and the function in the code.

    If `visible` is true, the sentence is visible without opening the step.
    """

    why: str
    specification: str = ''
    code: str = ''
    visible: bool = False

    @property
    def url(self) -> str:
        """The address of the specification."""
        if rfc := re.match('RFC ([0-9]+), section ([0-9.]+)', self.specification):
            return f'https://www.rfc-editor.org/rfc/rfc{rfc[1]}#section-{rfc[2]}'
        return ZENDESK_PAGES[self.specification]


ZENDESK_API = 'https://developer.zendesk.com/api-reference/ticketing'
ZENDESK_PAGES = {
    'Zendesk: Show Self': f'{ZENDESK_API}/users/users/#show-self',
    'Zendesk: Grant-Type Tokens': f'{ZENDESK_API}/oauth/grant_type_tokens/',
    'Zendesk: Revoking an OAuth token': 'https://developer.zendesk.com/documentation/api-basics/authentication/'
    'revoking-oauth-token',
}

TEXTS = {
    # The grant
    'auth': Text(
        'The app creates a random state, and derives the code verifier from it and the client secret. A signed cookie '
        'ties the state to this browser.',
        'RFC 6749, section 4.1.1',
        'auth in app.py',
    ),
    'authorization request': Text(
        'The state marks this browser’s request. The challenge is the SHA-256 hash of the verifier. The verifier '
        'itself stays in the app, because this redirect passes through the browser.',
        'RFC 7636, section 4.3',
        'auth in app.py',
        visible=True,
    ),
    'consent': Text('The browser follows the redirect.', 'RFC 6749, section 4.1.1'),
    'consent page': Text('Zendesk asks you, not the app. The app never sees your password.', 'RFC 6749, section 4.1.1'),
    'decision': Text('Your decision goes to Zendesk, not to the app.', 'RFC 6749, section 4.1.1'),
    'code': Text(
        'The code passes through the browser, where others may see it: in the history, in a log, or through an '
        'extension. A stolen code is useless without the verifier, which does not pass through the browser.',
        'RFC 6749, section 4.1.2',
        visible=True,
    ),
    'authorization error': Text('Zendesk sent an error instead of a code.', 'RFC 6749, section 4.1.2.1', visible=True),
    'denial': Text('You denied access, so Zendesk sends an error instead of a code.', 'RFC 6749, section 4.1.2.1'),
    'foreign callback': Text(
        'This callback does not belong to a request of this browser. Anyone can send you such a link.',
        visible=True,
    ),
    'callback': Text(
        'A callback has a code or an error, and the state. The app checks the state first.',
        'RFC 6749, section 4.1.2',
        'auth_callback in app.py',
    ),
    'state accepted': Text(
        'Without this check, an attacker could send you a link with their own code. The app would then use the '
        'attacker’s Zendesk account in your session, and you would not notice.',
        'RFC 9700, section 4.7',
        'consume_state in zendesk_oauth/client.py',
        visible=True,
    ),
    'state refused': Text(
        'The app stops here and sends nothing to Zendesk. Otherwise, it could store an attacker’s tokens in your '
        'session, and you would use the attacker’s Zendesk account without noticing.',
        'RFC 9700, section 4.7',
        'consume_state in zendesk_oauth/client.py',
        visible=True,
    ),
    'state no longer valid': Text(
        'A state is valid once, within ten minutes. An old callback is useless.',
        'RFC 9700, section 4.7',
        'consume_state in zendesk_oauth/client.py',
        visible=True,
    ),
    'code exchange': Text(
        'The verifier proves that this app started the request: Zendesk compares its hash with the challenge. This '
        'request does not pass through the browser, so it can carry the client secret.',
        'RFC 7636, section 4.5',
        'auth_callback in app.py',
        visible=True,
    ),
    'first tokens': Text(
        'Zendesk has accepted the code, the verifier and the client secret. The code cannot be used again.',
        'RFC 6749, section 5.1',
        'request_tokens in zendesk_oauth/tokens.py',
    ),
    'code rejected': Text(
        'Zendesk does not say which check failed. For example, the code may be used or expired, or the verifier may '
        'not match the challenge of the request for which Zendesk issued this code.',
        'RFC 6749, section 5.2',
        'request_tokens in zendesk_oauth/tokens.py',
        visible=True,
    ),
    # The profile, and the refresh
    'profile': Text('The session cookie names the user whose tokens the app looks up.', '', 'show_profile in app.py'),
    'API request': Text(
        'The app sends the access token. It does not know whether the token is still valid.',
        'Zendesk: Show Self',
        'show_self in app.py',
    ),
    'API response': Text('The user’s profile. The page shows the name and the role.', 'Zendesk: Show Self'),
    'access token rejected': Text(
        'The access token is no longer valid. If the app has a refresh token, it can get a new access token without '
        'asking the user.',
        'RFC 6750, section 3.1',
        'show_profile in app.py',
        visible=True,
    ),
    'lock': Text(
        'Zendesk accepts a refresh token once. If two requests refreshed with the same one, Zendesk would reject the '
        'second. So exactly one request refreshes, and the others wait here for its result.',
        'RFC 9700, section 4.14.2',
        'refresh_tokens in backend_code.py',
        visible=True,
    ),
    'lock, tokens replaced': Text(
        'Another request has replaced or deleted the tokens in the meantime. This one does not refresh: Zendesk would '
        'reject the old refresh token.',
        'RFC 9700, section 4.14.2',
        'refresh_tokens in backend_code.py',
        visible=True,
    ),
    'refresh': Text(
        'The app exchanges the refresh token for two new tokens. The client secret authenticates the app, so a stolen '
        'refresh token alone is not enough.',
        'RFC 6749, section 6',
        'refresh_tokens in backend_code.py',
    ),
    'new tokens': Text(
        'At this moment Zendesk deletes both old tokens: the access token and the refresh token. If this response '
        'were lost, the user would have to grant access again.',
        'Zendesk: Grant-Type Tokens',
        'request_tokens in zendesk_oauth/tokens.py',
        visible=True,
    ),
    'refresh token rejected': Text(
        'The refresh token is expired, used or unknown, and no request can repair this. The app deletes its tokens, '
        'and the user can grant access again.',
        'RFC 6749, section 5.2',
        'refresh_tokens in backend_code.py',
        visible=True,
    ),
    # Failures
    'failure': Text(
        'Zendesk responded with an error that is often temporary. It does not mean that the grant has ended.',
        code='unexpected_status in zendesk_oauth/endpoints.py',
        visible=True,
    ),
    'rejection': Text(
        'Zendesk rejected the request. The page of the app has the remedy.',
        code='unexpected_status in zendesk_oauth/endpoints.py',
        visible=True,
    ),
    'no response': Text(
        'The app does not know whether Zendesk has processed the request.',
        code='failed_exchange in zendesk_oauth/endpoints.py',
        visible=True,
    ),
    'no response to a refresh': Text(
        'The app does not know whether Zendesk has processed the refresh. If Zendesk has, the old tokens are invalid, '
        'and the user must grant access again.',
        code='failed_exchange in zendesk_oauth/endpoints.py',
        visible=True,
    ),
    # Disconnecting
    'disconnect': Text(
        'The app accepts this form only from its own pages.', 'RFC 6749, section 10.12', 'disconnect in app.py'
    ),
    'revocation': Text(
        'The app asks Zendesk to delete both tokens of this grant. After a new grant, it revokes the previous one.',
        'Zendesk: Revoking an OAuth token',
        'revoke_tokens in zendesk_oauth/tokens.py',
    ),
    'revocation confirmed': Text(
        'Zendesk confirms that it has deleted both tokens.', 'Zendesk: Revoking an OAuth token'
    ),
    'revocation rejected': Text(
        'This access token is no longer valid, so it cannot revoke the grant.',
        'RFC 6750, section 3.1',
        'revoke_tokens in zendesk_oauth/tokens.py',
    ),
    'revocation not verified': Text('Zendesk still accepts the access token.', visible=True),
    'revocation verified': Text(
        'The app checks that Zendesk now rejects the access token.',
        'RFC 6750, section 3.1',
        'revoke_tokens in zendesk_oauth/tokens.py',
    ),
    # users.json
    'holds': Text(
        'The stored tokens of this user, found by the user id in the session.',
        code='retrieve_oauth_tokens_from_db in backend_code.py',
    ),
    'holds nothing': Text(
        'Without tokens, the app cannot call Zendesk for this user.',
        code='retrieve_oauth_tokens_from_db in backend_code.py',
    ),
    'stores': Text(
        'The app stores the tokens under a new user id, because an attacker may know the old one.',
        code='store_oauth_tokens_in_db in backend_code.py',
    ),
    'replaces': Text(
        'The new tokens are on the disk before the app uses them.',
        code='replace_tokens in zendesk_oauth/tokens.py',
        visible=True,
    ),
    'deletes': Text('The app no longer stores tokens for this user.'),
    'store failure': Text('The app cannot access its tokens. Its log has the cause.', visible=True),
    # Pages
    'page request': Text('The browser follows the redirect.'),
    'redirect': Text(
        'The app sends the browser to another page. After a callback, this also removes the code and the state from '
        'the address bar.'
    ),
    'page': Text('The user sees only this page. It contains no token.'),
    # Attacks
    'code replaced': Text(
        'The code now comes from a grant that the attacker started in another browser. The app cannot see this.',
        'RFC 9700, section 4.5',
        visible=True,
    ),
    'theft': Text('A thief has a copy of this secret, and sends it to Zendesk.', 'RFC 9700, section 3', visible=True),
    'stolen code rejected': Text(
        'The thief has the code and even the client secret, but not the verifier. So Zendesk rejects the request.',
        'RFC 7636, section 1',
        visible=True,
    ),
    'stolen refresh token accepted': Text(
        'The thief also has the client secret, so Zendesk replaces both tokens. The app still holds the old ones. '
        'Zendesk does not revoke the thief’s tokens when the app later sends the old refresh token.',
        'RFC 9700, section 4.14.2',
        visible=True,
    ),
}

# One sentence for the whole exchange. The first name that occurs among the steps decides.
SUMMARIES = {
    'state refused': 'The app refused this callback: it does not belong to a request of this browser.',
    'code replaced': 'An attacker replaced your code with their own. Zendesk rejected it, because it belongs to '
    'another verifier.',
    'code rejected': 'Zendesk rejected the code, so the app stored nothing.',
    'revocation verified': 'The app deleted your tokens, and Zendesk revoked them.',
    'disconnect': 'The app deleted your tokens. Zendesk did not confirm that it revoked them.',
    'state no longer valid': 'The app refused this callback: its state was already used, or is too old.',
    'denial': 'You denied access, so the app got no tokens.',
    'stolen refresh token accepted': 'A thief used your refresh token first. Zendesk then rejected the app’s request.',
    'refresh token rejected': 'Zendesk rejected the access token and the refresh token, so the app deleted both.',
    'store failure': 'The app could not access its tokens.',
    'stolen code rejected': 'A thief sent your code to Zendesk first, without the verifier. Zendesk rejected the '
    'request of the thief, and then accepted the request of the app.',
    'first tokens': 'Zendesk gave the app a code, and the app exchanged it for tokens.',
    'no response to a refresh': 'No response to the refresh arrived. The app kept its tokens.',
    'no response': 'No response from Zendesk arrived.',
    'failure': 'Zendesk responded with an error that is often temporary.',
    'rejection': 'Zendesk rejected the request.',
    'new tokens': 'Your access token was no longer valid: the app refreshed it and called Zendesk again.',
    'lock, tokens replaced': 'Another request had changed your stored tokens, so the app did not refresh.',
    'access token rejected': 'Zendesk rejected the access token.',
    'API response': 'The access token was valid: one request to Zendesk was enough.',
    'consent': 'The app sent you to Zendesk, and Zendesk has not sent you back yet.',
    'holds nothing': 'The app holds no tokens for you, so it asks for access.',
}

# An exchange with one of these steps opens the panel.
NOTABLE = {
    'state refused',
    'state no longer valid',
    'code rejected',
    'denial',
    'refresh token rejected',
    'no response',
    'no response to a refresh',
    'failure',
    'rejection',
    'store failure',
    'new tokens',
    'lock, tokens replaced',
    'first tokens',
}
