"""The documentation: messages, links, routes and functions that it names exist."""

from __future__ import annotations

import ast
import re

import pytest
from helpers import PROJECT

import app as app_module
import backend_code
from zendesk_oauth import errors

PAGES = [
    PROJECT / 'README.md',
    PROJECT / 'CONTRIBUTING.md',
    PROJECT / 'CHANGELOG.md',
    *(PROJECT / 'docs').glob('*.md'),
    *(PROJECT / 'examples').glob('*/README.md'),
]
README = (PROJECT / 'README.md').read_text(encoding='utf-8')
TROUBLESHOOTING = (PROJECT / 'docs' / 'troubleshooting.md').read_text(encoding='utf-8')
PRODUCTION = (PROJECT / 'docs' / 'production.md').read_text(encoding='utf-8')


def section(text: str, title: str) -> str:
    return text.split(f'## {title}\n')[1].split('\n## ')[0]


def first_column(table: str) -> list[str]:
    """Return the first column of a table, without its header."""
    return [line.split(' | ')[0].removeprefix('| ') for line in table.splitlines() if line.startswith('| ')][1:]


# --- Messages --- #

EXPLAINED = first_column(section(TROUBLESHOOTING, 'On a page of the app'))


PRODUCT_ONLY = {errors.NotConnected, errors.ResponseError}  # the app does not show them


def titles(error: type[errors.ZendeskOAuthError]) -> set[str]:
    return {error.title}.union(*(titles(subclass) for subclass in error.__subclasses__()))


def test_troubleshooting_explains_every_error_title():
    shown = set().union(*(titles(error) for error in errors.ZendeskOAuthError.__subclasses__()))
    shown -= {error.title for error in PRODUCT_ONLY}
    shown |= {title for title, _ in (errors.SETUP_ERRORS | errors.WRONG_ADDRESS).values()}
    assert shown <= set(EXPLAINED)


@pytest.mark.parametrize('title', ['On a page of the app', 'In the terminal, when the app starts', 'In the log'])
def test_troubleshooting_is_sorted_by_message(title):
    messages = first_column(section(TROUBLESHOOTING, title))
    assert len(messages) > 4
    assert sorted(messages, key=str.lower) == messages


def test_troubleshooting_explains_the_errors_that_zendesk_shows():
    for message in ('No such client', 'Invalid Authorization Request', 'help desk'):
        assert message in section(TROUBLESHOOTING, 'On a page of Zendesk')


def quoted_messages() -> list[str]:
    tables = [
        section(TROUBLESHOOTING, 'In the terminal, when the app starts'),
        section(TROUBLESHOOTING, 'In the log'),
        section(PRODUCTION, 'Monitoring'),
    ]
    return [message for table in tables for cell in first_column(table) for message in re.findall('`([^`]+)`', cell)]


def constants(tree: ast.AST) -> list[str]:
    """Return all strings of the code. A value in an f-string becomes `_`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append(''.join(str(part.value) if isinstance(part, ast.Constant) else '_' for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


SOURCES = [path for folder in ('.', 'web', 'zendesk_oauth') for path in (PROJECT / folder).glob('*.py')]
TEXTS = [text for path in SOURCES for text in constants(ast.parse(path.read_text(encoding='utf-8')))]
# Examples in the documentation. In the code they are placeholders.
EXAMPLES = r'users\.json|tokens\.db|users:read|\.secret_key|\.env|3000|5000|GeventWorker|\b3\b'


@pytest.mark.parametrize('message', quoted_messages())
def test_each_quoted_message_occurs_in_the_code(message):
    # settings.py adds the name of the variable to the problem.
    problem = re.sub(r'^(ZENDESK_SUBDOMAIN|DATABASE_URL) (?=is not|needs)', '', message).removesuffix(' ...')
    pattern = re.sub(EXAMPLES, '_', problem)
    assert any(pattern in re.sub(f'%s|{{}}|{EXAMPLES}', '_', text) for text in TEXTS)


# --- Links, routes, functions --- #


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings."""
    headings = re.findall('^#+ (.+)$', text, re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_each_link_leads_to_a_file_and_a_heading(page):
    text = page.read_text(encoding='utf-8')
    links = re.findall(r'\]\(([^)]+)\)|(?:src|srcset)="([^"]+)"', text)
    for link in (one or other for one, other in links):
        if link.startswith('http'):
            continue
        path, _, anchor = link.partition('#')
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding='utf-8')), link


def test_the_readme_names_each_route_and_function_of_the_article():
    table = section(README, 'Where each step is')
    routes = {rule.rule for rule in app_module.app.url_map.iter_rules()}
    routes -= {'/static/<path:filename>', '/disconnect', '/health'}
    assert set(re.findall('`(/[^`]*)`', table)) == routes
    names = set(re.findall('`([a-z_]+)`', table)) - {'settings', 'web', 'zendesk_oauth'}
    assert {'index', 'show_profile', 'auth_callback', 'refresh_tokens'} <= names
    assert all(hasattr(app_module, name) or hasattr(backend_code, name) for name in names)


def test_each_promise_names_its_tests():
    text = (PROJECT / 'docs' / 'promises.md').read_text(encoding='utf-8')
    rows = [line for line in text.splitlines() if line.startswith('| ') and not line.startswith('| promise |')]
    code = {path.name: path.read_text(encoding='utf-8') for path in (PROJECT / 'tests').rglob('*.py')}
    for row in rows:
        tests = re.findall('`(test_[^`]+)`', row.split(' | ')[1])
        assert tests, row
        for test in tests:
            assert test in code or any(f'def {test}(' in text for text in code.values()), test


def test_the_readme_has_at_most_150_lines():
    assert README.count('\n') <= 150


def test_the_two_tutorial_files_have_at_most_280_lines():
    lines = [len((PROJECT / name).read_text(encoding='utf-8').splitlines()) for name in ('app.py', 'backend_code.py')]
    assert sum(lines) <= 280
