"""The shop as customers use it."""

import contextlib

from playwright.sync_api import Error
from stand import *

PRODUCTS = [
    ("tent", "Ridgeline Tent", 18_900, "Outdoor", "Fellhaven"),
    ("lamp", "Highpass Headlamp", 2_900, "Outdoor", "Northspur"),
    ("kettle", "Hearth Kettle", 4_200, "Kitchen", "Potwell"),
    ("tea", "Harbour Green Tea", 800, "Coffee & Tea", "Leaf & Ladle"),
    ("beans", "Daybreak Espresso Beans", 1_100, "Coffee & Tea", "Quayside Coffee"),
]


def set_up():
    for product in PRODUCTS:
        define(*product)
    for name in ["Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Jo"]:
        register(name)
    register("Ida", 5_000)
    eventually("all can be searched", lambda: api("GET", "/v1/products?q=te&active=true")["total"] >= 2)


def one_order(customer):
    """The customer's only order, however long one looks."""
    eventually("the order is paid", lambda: [it["status"] for it in orders(customer)][:1] == ["paid"])
    assert len(orders(customer)) == 1, orders(customer)


def forget(held):
    """Lets go of requests whose page is gone."""
    for route in held:
        with contextlib.suppress(Error):
            route.abort()


def ready(shop, customer, product="tea"):
    """At the checkout, about to buy."""
    shop.be(customer)
    page = shop.fill_cart(product)
    shop.open("/#/checkout")
    expect(page.get_by_role("button", name="Buy")).to_be_enabled()
    return page


@scenario
def search_and_filters(chromium):
    shop = Shop(chromium)
    page = shop.open()
    expect(page.locator(".product")).to_have_count(len(PRODUCTS))
    page.get_by_role("searchbox").press_sequentially("tent", delay=20)
    expect(page.locator(".product-name")).to_have_text(["Ridgeline Tent"])
    page.get_by_role("searchbox").fill("")
    page.get_by_role("checkbox", name="Coffee & Tea").check()
    expect(page.locator(".product")).to_have_count(2)
    expect(page.get_by_role("checkbox", name="Outdoor 2")).to_be_visible()
    page.get_by_label("Sort").select_option("Dearest first")
    expect(page.locator(".product-name")).to_have_text(["Daybreak Espresso Beans", "Harbour Green Tea"])
    page.reload()
    expect(page.locator(".product-name")).to_have_text(["Daybreak Espresso Beans", "Harbour Green Tea"])
    page.get_by_role("button", name="Clear filters").click()
    expect(page.locator(".product")).to_have_count(len(PRODUCTS))
    shop.close()


@scenario
def an_older_search_that_answers_late_is_not_shown(chromium):
    shop = Shop(chromium)
    page = shop.open()
    expect(page.locator(".product")).to_have_count(len(PRODUCTS))
    held = []
    page.route(re.compile("q=kettle"), lambda route: held.append(route))
    page.get_by_role("searchbox").fill("kettle")
    eventually("the first search is sent", lambda: page.wait_for_timeout(20) or held)
    page.get_by_role("searchbox").fill("tent")
    expect(page.locator(".product-name")).to_have_text(["Ridgeline Tent"])
    held[0].continue_()
    page.wait_for_timeout(500)
    expect(page.locator(".product-name")).to_have_text(["Ridgeline Tent"])
    shop.close()


@scenario
def a_card_is_charged_and_the_progress_comes_by_itself(chromium):
    shop = Shop(chromium)
    shop.be("Ann")
    page = shop.buy("tent", "Slow bank")
    page.evaluate("window.same = true")
    expect(page.locator("#status")).to_have_text("Paid")
    expect(page.locator("#money")).to_have_text("$189.00 were charged to your card, once.")
    order = orders("Ann")[0]["orderId"]
    api("POST", f"/v1/orders/{order}/ship", {"carrier": "Post", "trackingNumber": "77"})
    expect(page.locator("#status")).to_have_text("Shipped")
    expect(page.get_by_text("With Post, parcel 77")).to_be_visible()
    api("POST", f"/v1/orders/{order}/deliver", {})
    expect(page.locator("#status")).to_have_text("Delivered")
    assert page.evaluate("window.same"), "the page was loaded again"
    shop.close()


@scenario
def a_declined_card_is_not_charged(chromium):
    shop = Shop(chromium)
    shop.be("Bob")
    page = shop.buy("tea", "Card that is declined")
    expect(page.locator("#status")).to_have_text("Rejected")
    expect(page.locator("#money")).to_have_text("Nothing was charged.")
    expect(page.locator("#reason")).to_contain_text("the bank has declined the payment")
    page.get_by_role("button", name="Put it into the cart again").click()
    expect(page.locator(".line-name")).to_have_text("Harbour Green Tea")
    shop.close()


@scenario
def a_double_click_makes_one_order(chromium):
    shop = Shop(chromium)
    page = ready(shop, "Cleo")
    page.get_by_role("button", name="Buy").dblclick()
    expect(page.locator("#status")).to_have_text("Paid")
    page.wait_for_timeout(500)
    one_order("Cleo")
    shop.close()


@scenario
def two_tabs_that_buy_at_once_make_one_order(chromium):
    shop = Shop(chromium)
    page = ready(shop, "Jo")
    other = shop.tab()
    other.goto(BASE + "/#/checkout")
    expect(other.get_by_role("button", name="Buy")).to_be_enabled()
    twice = "document.querySelector('form .wide')?.click();" * 2
    for tab in [page, other]:
        tab.evaluate(f"setTimeout(() => {{ {twice} }}, 50)")
    eventually("the order has arrived", lambda: page.wait_for_timeout(50) or orders("Jo"))
    page.wait_for_timeout(1_000)
    one_order("Jo")
    shop.close()


@scenario
def a_reload_after_the_order_has_arrived_makes_one_order(chromium):
    shop = Shop(chromium)
    page = ready(shop, "Dan")
    # It arrives, and its answer never does.
    held = []
    page.route("**/v1/orders", lambda route: held.append(route) or route.fetch())
    page.get_by_role("button", name="Buy").click()
    eventually("the order has arrived", lambda: orders("Dan"))
    page.unroute("**/v1/orders")
    page.reload()
    forget(held)
    expect(page.locator("#status")).to_have_text("Paid")
    one_order("Dan")
    expect(page.get_by_role("link", name="Cart, 0 pieces")).to_be_visible()
    shop.close()


@scenario
def a_reload_before_the_order_has_arrived_makes_one_order(chromium):
    shop = Shop(chromium)
    page = ready(shop, "Eve")
    held = []
    page.route("**/v1/orders", lambda route: held.append(route))
    page.get_by_role("button", name="Buy").click()
    eventually("the order is sent", lambda: page.wait_for_timeout(20) or held)
    assert orders("Eve") == []
    page.unroute("**/v1/orders")
    page.reload()
    forget(held)
    expect(page.locator("#status")).to_have_text("Paid")
    one_order("Eve")
    shop.close()


@scenario
def who_is_offline_is_told_and_buys_once(chromium):
    shop = Shop(chromium)
    page = ready(shop, "Finn")
    shop.offline = True
    shop.context.set_offline(True)
    page.get_by_role("button", name="Buy").click()
    expect(page.get_by_text("Not known yet")).to_be_visible()
    page.wait_for_timeout(1_500)
    shop.context.set_offline(False)
    expect(page.locator("#status")).to_have_text("Paid")
    shop.offline = False
    one_order("Finn")
    shop.close()


@scenario
def the_cart_survives_a_reload(chromium):
    shop = Shop(chromium)
    page = shop.fill_cart("kettle")
    page.get_by_role("button", name="Put into the cart").click()
    page.reload()
    shop.open("/#/cart")
    expect(page.locator(".line output")).to_have_text("2")
    expect(page.locator(".sums dd")).to_have_text("$84.00")
    page.get_by_role("button", name="One less").click()
    expect(page.locator(".sums dd")).to_have_text("$42.00")
    shop.close()


@scenario
def a_price_that_has_changed_is_told_before_buying(chromium):
    shop = Shop(chromium)
    define("book", "A Book", 1_000, "Books", "Acme")
    shop.fill_cart("book")
    define("book", "A Book", 1_200, "Books", "Acme")
    page = shop.open("/#/cart")
    expect(page.get_by_text("Costs $12.00 now")).to_be_visible()
    page.get_by_role("button", name="Take the new prices").click()
    expect(page.locator(".sums dd")).to_have_text("$12.00")
    shop.close()


@scenario
def the_progress_goes_on_across_a_restart_of_the_api(chromium):
    shop = Shop(chromium)
    shop.be("Gus")
    page = shop.buy("lamp")
    expect(page.locator("#status")).to_have_text("Paid")
    page.evaluate("window.same = true")
    order = orders("Gus")[0]["orderId"]
    shop.offline = True
    ask("stop")
    expect(page.get_by_text("The connection to the shop is lost")).to_be_visible()
    ask("start")
    expect(page.get_by_text("The connection to the shop is lost")).to_be_hidden()
    shop.offline = False
    api("POST", f"/v1/orders/{order}/ship", {"carrier": "Post", "trackingNumber": "78"})
    expect(page.locator("#status")).to_have_text("Shipped")
    assert page.evaluate("window.same"), "the page was loaded again"
    shop.close()


@scenario
def a_cancelled_order_is_refunded_and_is_in_the_history(chromium):
    shop = Shop(chromium)
    shop.be("Hal")
    page = shop.buy("tent")
    expect(page.locator("#status")).to_have_text("Paid")
    page.get_by_role("button", name="Cancel the order").click()
    expect(page.locator("#status")).to_have_text("Refunded")
    expect(page.locator("#money")).to_have_text("$189.00 had been charged and were given back to your card.")
    shop.buy("tea")
    shop.open("/#/orders")
    expect(page.locator(".order")).to_have_count(2)
    expect(page.locator(".order .tag").last).to_have_text("Refunded")
    pictures = page.locator(".order img")
    assert all(it.get_attribute("src").startswith("data:image/svg+xml") for it in pictures.all())
    assert pictures.first.evaluate("(it) => it.complete && it.naturalWidth > 0")
    page.get_by_role("button", name="Ended otherwise").click()
    expect(page.locator(".order")).to_have_count(1)
    page.locator(".order a").click()
    expect(page.locator("#status")).to_have_text("Refunded")
    shop.close()


@scenario
def an_order_that_comes_while_the_list_is_read_is_in_it(chromium):
    shop = Shop(chromium)
    shop.be("Hal")
    before = len(orders("Hal"))
    held = []

    def hold(route):
        # Read before the order, and not told until after it.
        if held:
            route.continue_()
        else:
            held.append((route, route.fetch()))

    page = shop.page
    page.route(re.compile("/orders[?]"), hold)
    shop.open("/#/orders")
    eventually("the list is read", lambda: page.wait_for_timeout(20) or held)
    place("Hal", "tea")
    eventually("the order is paid", lambda: orders("Hal")[0]["status"] == "paid")
    page.wait_for_timeout(500)
    held[0][0].fulfill(response=held[0][1])
    expect(page.locator(".order")).to_have_count(before + 1)
    expect(page.locator(".order .tag").first).to_have_text("Paid")
    shop.close()


@scenario
def the_credit_limit_and_what_is_left_of_it_are_shown(chromium):
    shop = Shop(chromium)
    page = shop.be("Ida")
    expect(page.locator("#credit-limit")).to_have_text("$50.00")
    for left, status in [("$8.00", "Paid"), ("$8.00", "Rejected")]:
        shop.fill_cart("kettle")
        shop.open("/#/checkout")
        page.get_by_role("radio", name="On account").check()
        if status == "Rejected":
            expect(page.get_by_text("more than what is left of your credit limit")).to_be_visible()
        page.get_by_role("button", name="Buy").click()
        expect(page.locator("#status")).to_have_text(status)
        expect(page.locator(".who-credit")).to_have_text(f"{left} credit left")
    expect(page.locator("#reason")).to_contain_text("your credit limit would be exceeded")
    expect(page.locator("#money")).to_have_text("Nothing was charged.")
    shop.open("/#/account")
    expect(page.locator("#credit-left")).to_have_text("$8.00")
    shop.close()


@scenario
def somebody_new_registers_and_buys_with_the_keyboard_alone(chromium):
    shop = Shop(chromium)
    page = shop.fill_cart("beans")
    shop.open("/#/account?then=checkout")
    page.get_by_label("Name").fill("Zoë Quick")
    page.get_by_label("Name").press("Enter")
    buy = page.get_by_role("button", name="Buy")
    expect(buy).to_be_enabled()
    for _ in range(40):
        page.keyboard.press("Tab")
        if buy.evaluate("(it) => it === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text("Paid")
    shop.close()


@scenario
def every_view_can_be_used_by_everybody(chromium):
    for name, viewport, scheme in [("desktop", DESKTOP, "light"), ("phone", PHONE, "dark")]:
        shop = Shop(chromium, viewport, scheme)
        page = shop.open()
        expect(page.locator(".product").last).to_be_visible()
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        print(f"first paint of the shop, {name}: {paint:.0f} ms", flush=True)
        page.wait_for_timeout(300)
        moved = page.evaluate("window.moved")
        assert sum(entry[0] for entry in moved) < 0.01, f"the layout has shifted: {moved}"
        shop.accessible(f"shop-catalogue-{name}")
        shop.open("/#/product/tent")
        expect(page.locator(".detail")).to_be_visible()
        shop.accessible(f"shop-product-{name}")
        shop.be("Hal")
        shop.accessible(f"shop-account-{name}")
        shop.fill_cart("kettle")
        shop.open("/#/cart")
        shop.accessible(f"shop-cart-{name}")
        shop.open("/#/checkout")
        shop.accessible(f"shop-checkout-{name}")
        shop.buy("tea")
        expect(page.locator("#status")).to_have_text("Paid")
        shop.accessible(f"shop-order-{name}")
        shop.open("/#/orders")
        expect(page.locator(".order").first).to_be_visible()
        shop.accessible(f"shop-orders-{name}")
        shop.close()


set_up()
run()
