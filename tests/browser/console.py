"""The console as operators use it."""

import uuid

from stand import *

CUSTOMER = "Kim"


def set_up():
    define("mug", "Hearth Mug", 900, "Kitchen", "Potwell", stock=100_000)
    register(CUSTOMER)


def park():
    """An order whose payment the journal does not take, so that its message is parked."""
    order = str(uuid.uuid4())
    ask(f"contradict {order}")
    return place(CUSTOMER, "mug", order)


# Of copies of the workers' boxes with long times: in how many the times go beyond the edge.
OUTSIDE = """() => {
  const copies = [...document.querySelectorAll(".node.worker")].map((box) => {
    const copy = box.cloneNode(true);
    box.after(copy);
    copy.querySelector(".facts dd").textContent = "279 ms / 395 ms";
    return copy;
  });
  const outside = copies.filter((copy) => {
    const text = document.createRange();
    text.selectNodeContents(copy.querySelector(".facts dd"));
    return text.getBoundingClientRect().right > copy.getBoundingClientRect().right - 8;
  });
  copies.forEach((copy) => copy.remove());
  return outside.length;
}"""


def node(page, name):
    return page.locator(".node").filter(has=page.get_by_role("heading", name=name))


@scenario
def the_pipeline_shows_live_numbers(chromium):
    shop = Shop(chromium)
    page = shop.open("/ops")
    for name in ["validation", "payment", "persistence", "projection", "reservations"]:
        expect(node(page, name).get_by_text("1 alive")).to_be_visible()
    for server in ["NATS", "PostgreSQL", "Redis"]:
        expect(page.locator(".health li").filter(has_text=server)).to_contain_text("answers in")
    # The synthetic load of the page itself.
    page.get_by_label("Orders a second").select_option("20")
    page.get_by_label("For how long").select_option("10 seconds")
    page.get_by_role("button", name="Start").click()
    busy = r"^[1-9][0-9.]*/s$"
    for name in ["validation", "payment", "persistence", "projection"]:
        expect(node(page, name).locator(".big")).to_have_text(re.compile(busy))
        expect(node(page, name).locator(".facts div").first).to_contain_text(re.compile(r"[0-9]+ ms|[0-9.]+ s"))
    expect(page.get_by_role("button", name="Start")).to_be_visible()
    says = page.locator("#load-says").inner_text()
    accepted = int(re.match(r"([\d,]+) accepted", says)[1].replace(",", ""))
    assert 20 <= accepted <= 200, says
    expect(page.get_by_role("img", name=re.compile("Messages a second: commands"))).to_be_visible()
    # Who comes later has the charts at once.
    other = shop.tab()
    other.goto(BASE + "/ops")
    line = other.locator(".chart .line").first
    eventually("the history is drawn", lambda: "L" in (line.get_attribute("d") or ""))
    for width in [390, 1280, 1440, 1600]:
        other.set_viewport_size({"width": width, "height": 900})
        assert other.evaluate(OUTSIDE) == 0, f"a time leaves its box at {width} pixels"
    shop.close()


@scenario
def nothing_is_shown_as_new_that_is_old(chromium):
    shop = Shop(chromium)
    page = shop.open("/ops")
    expect(node(page, "payment").get_by_text("1 alive")).to_be_visible()
    shop.offline = True
    ask("stop")
    expect(page.get_by_text("what is shown is old")).to_be_visible()
    ask("start")
    expect(page.get_by_text("what is shown is old")).to_be_hidden()
    shop.offline = False
    shop.close()


@scenario
def a_parked_message_is_shown_and_replayed(chromium):
    shop = Shop(chromium)
    page = shop.open("/ops")
    expect(page.get_by_text("nothing waits")).to_be_visible()
    order = park()
    expect(page.locator("a.parked .big")).to_have_text("1")
    page.locator("a.parked").click()
    row = page.locator(".parked-row")
    expect(row).to_have_count(1)
    expect(row).to_contain_text(f"evt.order.{order}.paid")
    row.get_by_role("button", name="Show").click()
    expect(page.get_by_label("Payload")).to_contain_text(f'"orderId": "{order}"')
    shop.accessible("ops-parked-desktop")
    row.get_by_role("button", name="Replay").click()
    expect(page.locator("#says")).to_have_text("1 failing still")
    ask("heal")
    page.get_by_role("button", name="Choose all").click()
    page.get_by_role("group", name="All that are chosen").get_by_role("button", name="Replay").click()
    expect(page.locator("#says")).to_have_text("1 replayed")
    expect(page.get_by_text("Nothing is parked.")).to_be_visible()
    shop.close()


@scenario
def a_parked_message_is_discarded_with_a_reason(chromium):
    park()
    shop = Shop(chromium)
    page = shop.open("/ops#/parked")
    page.get_by_role("checkbox").check()
    page.get_by_label("Why they are discarded").fill("made for a test")
    page.get_by_role("button", name="Discard").click()
    expect(page.locator("#says")).to_have_text("1 discarded")
    expect(page.get_by_text("Nothing is parked.")).to_be_visible()
    ask("heal")
    shop.close()


@scenario
def an_order_is_found_with_its_story(chromium):
    order = place(CUSTOMER, "mug")
    shop = Shop(chromium)
    page = shop.open("/ops#/order")
    expect(page.locator(".order-row").filter(has_text=order)).to_be_visible()
    page.get_by_label("Order id").fill(order)
    page.keyboard.press("Enter")
    expect(page.locator(".moment strong")).to_have_text(["place", "validated", "charge", "paid"])
    expect(page.locator(".stays")).to_contain_text("validated")
    shop.close()


@scenario
def reports_tell_what_was_sold(chromium):
    place(CUSTOMER, "mug")
    shop = Shop(chromium)
    page = shop.open("/ops#/reports")
    expect(page.locator(".tile").first).to_contain_text("$")
    expect(page.get_by_role("table").first).to_contain_text("Hearth Mug")
    page.get_by_role("button", name="Last day").click()
    expect(page.get_by_role("button", name="Last day")).to_have_attribute("aria-pressed", "true")
    shop.close()


@scenario
def every_view_can_be_used_by_everybody(chromium):
    order = place(CUSTOMER, "mug")
    for name, viewport, scheme in [("desktop", {"width": 1440, "height": 900}, "dark"), ("phone", PHONE, "light")]:
        shop = Shop(chromium, viewport, scheme)
        page = shop.open("/ops")
        expect(node(page, "payment").get_by_text("1 alive")).to_be_visible()
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        print(f"first paint of the console, {name}: {paint:.0f} ms", flush=True)
        page.wait_for_timeout(2_500)
        moved = page.evaluate("window.moved")
        assert sum(entry[0] for entry in moved) < 0.01, f"the layout has shifted: {moved}"
        shop.accessible(f"ops-pipeline-{name}")
        shop.open("/ops#/reports")
        expect(page.locator(".tile").first).to_be_visible()
        shop.accessible(f"ops-reports-{name}")
        shop.open("/ops#/order")
        expect(page.locator(".order-row").first).to_be_visible()
        shop.accessible(f"ops-orders-{name}")
        shop.open(f"/ops#/order/{order}")
        expect(page.locator(".moment").first).to_be_visible()
        shop.accessible(f"ops-story-{name}")
        shop.open("/ops#/parked")
        expect(page.get_by_text("Nothing is parked.")).to_be_visible()
        shop.accessible(f"ops-nothing-parked-{name}")
        shop.close()


set_up()
run()
