"""Signing in, where the edge asks for it."""

import os

from playwright.sync_api import Error
from stand import *

TOKENS = json.loads(os.environ["MILLRACE_TOKENS"])


def sign_in(page, token):
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()


def nobody(page):
    expect(page.get_by_role("heading", level=1)).to_have_text("Who are you?")
    assert page.evaluate("sessionStorage.length") == 0


def forgotten(page):
    # Asked anew each time: Playwright's own waiting needs `eval`, which the page's policy does not let it have.
    try:
        return page.evaluate("sessionStorage.length") == 0
    except Error:
        return False  # the page was just being loaded again


@scenario
def a_customer_signs_in_buys_and_leaves(chromium):
    shop = Shop(chromium)
    asked = []
    shop.page.on("request", lambda request: asked.append(request.url))
    page = shop.open("/#/account")
    nobody(page)
    expect(page.get_by_role("button", name="Register")).to_have_count(0)
    shop.accessible("sign-in-shop")
    sign_in(page, TOKENS["ann"])
    expect(page.get_by_role("heading", level=1)).to_have_text("Customer ann")
    expect(page.locator("#credit-left")).to_have_text("$1,000.00")
    shop.buy("mug")
    expect(page.locator("#status")).to_contain_text(re.compile("paid", re.I))
    page.reload()
    expect(page.locator("#status")).to_contain_text(re.compile("paid", re.I))
    # Who has no token looks at the catalogue, and nothing else.
    other = shop.tab()
    other.goto(BASE + "/#/account")
    nobody(other)
    other.goto(BASE + "/")
    expect(other.locator(".product")).to_have_count(1)
    shop.open("/#/account")
    page.get_by_role("button", name="Sign out").click()
    nobody(page)
    assert len(asked) > 10 and not any(TOKENS["ann"][:20] in url for url in asked), asked
    shop.close()


@scenario
def an_operator_signs_in_to_the_console(chromium):
    shop = Shop(chromium)
    page = shop.open("/ops")
    nobody(page)
    shop.accessible("sign-in-console")
    sign_in(page, TOKENS["ops"])
    payment = page.locator(".node").filter(has=page.get_by_role("heading", name="payment"))
    expect(payment.get_by_text("1 alive")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    nobody(page)
    shop.close()


@scenario
def a_token_that_is_not_taken_leads_back_to_the_door(chromium):
    for path, token in [("/#/account", TOKENS["ann"] + "x"), ("/ops", "abc")]:
        shop = Shop(chromium)
        # The browser itself complains about the refusal.
        shop.offline = True
        page = shop.open(path)
        sign_in(page, token)
        eventually("the token is forgotten", lambda: forgotten(page))
        nobody(page)
        shop.close()


run()
